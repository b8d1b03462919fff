"""What no attack can pass: against the best attack there is on a mechanism that can be solved by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.ceilings import Ceilings, densest, most_frequent
from fedblocks.threat_model.closeness import closeness, exact_from, exact_radius
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.tradeoff import GaussianTradeOff


def test_no_ball_holds_more_than_the_densest_says() -> None:
    """Oracle: many balls, centred on anything. Would catch a radius for a diameter, and a guess that must be one of
    the examples."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(600, 3, generator=rng)
    found = densest(values, 0.3)
    fresh = torch.randn(4000, 3, generator=rng)
    centres = torch.randn(500, 3, generator=rng) * 0.5
    inside = (torch.cdist(centres, fresh) <= 0.3).double().mean(1)
    assert float(inside.max()) <= found.high
    assert densest(torch.zeros(50, 2), 0.1).value == 1
    far = densest(100 * torch.arange(1000.0)[:, None], 1.0)
    assert 0 < far.high < 0.006  # one of a thousand lies near itself


def test_exact_guesses_lie_within_the_radius() -> None:
    """Would catch a ball that is too small, and so a ceiling that a real attack can pass."""
    from fedblocks.blocks.taps import Field

    rng = torch.Generator().manual_seed(1)
    for what in ("image", "series"):
        field = Field(name="x", what=what, shape=(1, 4, 4), side="inputs")  # type: ignore[arg-type]
        originals = torch.rand(50, 1, 4, 4, generator=rng)
        radius = exact_radius(field, originals)
        noise = torch.randn(50, 1, 4, 4, generator=rng)
        outside = originals + noise / noise.reshape(50, -1).norm(dim=1).view(-1, 1, 1, 1) * radius * 1.001
        assert (closeness(field, outside, originals) < exact_from(field)).all()


def test_the_best_blind_label_is_each_companys_own() -> None:
    """Would catch the share over all companies, which somebody who knows the company beats."""
    found = most_frequent([torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0])])
    assert found.value == 0.75


def test_the_optimal_attack_on_a_gaussian_release_reaches_and_never_passes_it(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Oracle: one of M equally likely signals of the clip's length in the mechanism's noise; the likelihood's largest
    is the best attack there is. Would catch a ceiling that is no ceiling, or one that says nothing."""
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e5, "noise_multiplier": 0.5}
    subject = Subject.of(prepare(SimulationSettings.model_validate(raw), tmp_path / "run"), block=0)
    ceilings = Ceilings.of(subject, 0)
    assert ceilings is not None
    assert isinstance(ceilings.promised, GaussianTradeOff)
    assert ceilings.promised.mu == pytest.approx(2.0)
    rng = np.random.default_rng(0)
    for m in (2, 10, 100):
        signals = np.eye(m)
        truth = rng.integers(m, size=4000)
        seen = signals[truth] + rng.normal(size=(4000, m)) * 0.5
        success = float((seen.argmax(1) == truth).mean())
        bound = ceilings.promised.hits(1 / m)
        assert bound == pytest.approx(norm.cdf(norm.ppf(1 / m) + 2))
        assert success <= bound + 0.02
    both = Ceilings.of(subject, 0, 4)
    assert both is not None
    label = subject.problem(0).by_name["label"]
    image = subject.problem(0).by_name["image"]
    assert both.read_off(label) < ceilings.read_off(label) < 1
    assert ceilings.exact(image) < ceilings.exact(image, guesses=3)
