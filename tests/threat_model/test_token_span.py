"""The attacks on texts, from a prepared run to results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.randomness import Randomness
from fedblocks.threat_model.attacks import exposure, token_span
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.exhibits import Kept, Texts
from fedblocks.threat_model.intervals import proportion
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.tokens.extraction import LocalRun, Losses, Secrets, untraced

SMALL = (
    "model.hidden_size=32",
    "model.layers=4",
    "model.blocks=2",
    "model.heads=2",
    "model.sequence_length=8",
    "pretraining.steps=2",
    "training.rounds=4",
    "data.test_examples=20",
)


def subject_of(preset: str, folder: Path, *changed: str) -> Subject:
    return Subject.of(prepare(load_settings(preset, [*SMALL, *changed]), folder), seed=1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    subject = subject_of("ar-text", tmp_path_factory.mktemp("runs") / "ar", "privacy.noise_multiplier=3.0")
    return replace(subject, blocks=(0,))


@pytest.fixture(scope="module")
def found(texts: Subject) -> list[Result | Kept]:
    return list(token_span.ATTACK.run(texts))


@pytest.fixture(scope="module")
def attacked(found: list[Result | Kept]) -> dict[tuple[str, str], Result]:
    return {(r.adversary, r.statistic): r for r in found if isinstance(r, Result)}


def test_the_report_is_given_what_was_read_of_texts(texts: Subject, found: list[Result | Kept]) -> None:
    """Would catch an original that is none of a company's, and a token that is shown and was not read off."""
    shown = [each for each in found if isinstance(each, Texts)]
    assert [each.view for each in shown] == [
        "one company's release, all other examples known", "the opened sum, all other examples known",
    ]  # fmt: skip
    private = torch.cat([own.inputs for own in texts.private.values()]).tolist()
    for each in shown:
        original, control = each.arrays["original"], each.arrays["control"]
        assert all(text.tolist() in private for text in original)
        for tokens in each.arrays.values():
            assert np.isin(tokens[tokens >= 0], original).all()
            assert ((tokens == original) | (tokens == -1)).all()
        assert (control >= 0).mean() > 0.7


VALUES, SETS, ORDER = "token values found", "sets of token values exact", "texts in order"


def test_raw_gradients_give_texts_away_and_much_noise_does_not(
    attacked: dict[tuple[str, str], Result],
) -> None:
    """Would catch an attack that scores what it was not given, a control that fails without notice, and a view that
    has no noise."""
    for statistic in (VALUES, SETS, ORDER):
        insider = attacked["insider", statistic]
        assert insider.outcome == "found"
        assert insider.value is not None
        assert insider.value.value >= 0.9
        assert not insider.protected
        for adversary in ("colluding-coordinator", "coordinator"):
            result = attacked[adversary, statistic]
            assert result.outcome == "not found"
            assert result.control is not None
            assert result.baseline is not None
            assert result.control.value >= 0.9 > result.baseline.value
            assert result.value is not None
            assert result.value.low <= result.baseline.value + 0.05
            assert result.wins_at is None or result.wins_at < 3.0


@pytest.mark.parametrize(
    ("texts", "cut", "outcome"),
    [(20, "", "not applicable"), (4, "", "inconclusive"), (20, "the time ran out", "inconclusive")],
)
def test_whole_sets_that_are_surely_not_exact_without_noise_either_do_not_count(
    texts: int, cut: str, outcome: str
) -> None:
    """Would catch a pass for want of texts or time, and an audit left open by a figure that this model has not."""
    about: dict[str, object] = {
        "attack": "token-span", "adversary": "coordinator", "view": "sum", "statement": "reconstruction",
        "statistic": "sets", "unit": "share", "block": 0,
    }  # fmt: skip
    none = [False] * texts
    assert token_span._counted(about, none, none, proportion(0, texts), cut).outcome == outcome


@pytest.mark.slow
def test_a_clock_that_has_run_out_is_inconclusive(texts: Subject) -> None:
    """Would catch "not found" of an order that nobody looked for."""
    results = [r for r in token_span.ATTACK.run(texts.within(Clock(1e-9))) if isinstance(r, Result)]
    orders = [r for r in results if r.statistic == ORDER]
    assert orders
    assert {r.outcome for r in orders} == {"inconclusive"}


def test_reasons_why_it_does_not_apply(texts: Subject, tmp_path: Path) -> None:
    """Would catch an attack on images, on a table that moves, or a rank that is not named."""
    training = texts.plan.training.model_copy(update={"interface": True, "local_steps": 2})
    moved = replace(texts, plan=texts.plan.model_copy(update={"training": training}), _problems={})
    assert "moves from step to step" in str(token_span.ATTACK.applies(moved))
    images = Subject.of(
        prepare(load_settings("digits", ["pretraining.steps=1", "model.layers=3"]), tmp_path / "digits")
    )
    assert token_span.ATTACK.applies(images) is not None
    assert exposure.ATTACK.applies(images) is not None


@pytest.mark.slow
def test_a_full_rank_leaves_the_values_and_names_the_rank(tmp_path: Path) -> None:
    """Would catch an order that is searched where every prefix fits, and values that are given up with it."""
    long = replace(subject_of("ar-text", tmp_path / "ar", "model.sequence_length=40"), blocks=(0,))
    results = [r for r in token_span.ATTACK.run(long) if isinstance(r, Result)]
    refused = [r for r in results if r.statistic == ORDER]
    assert {r.outcome for r in refused} == {"not applicable"}
    assert "rank 32 >= 32" in refused[0].reason
    assert {r.outcome for r in results if r.statistic == VALUES and r.adversary == "insider"} == {"found"}


def secrets_of(subject: Subject, **sizes: int) -> Secrets:
    sizes = {"canaries": 6, "often": 4, "times": 20, "rivals": 63} | sizes
    return Secrets.draw(subject.public.inputs, torch.Generator().manual_seed(0), **sizes)


def test_exposure_is_the_rank_in_bits(texts: Subject) -> None:
    """Would catch ranks that count from zero, or a canary ranked among its own kind."""
    secrets = secrets_of(texts)
    for loss, bits in ((0.0, 6.0), (1.0, 0.0)):

        def losses(each: torch.Tensor, loss: float = loss) -> torch.Tensor:
            return torch.full((len(each),), 0.5 if each is secrets.rivals else loss)

        found = secrets.exposures(losses)
        assert [len(found[kind]) for kind in ("once", "often", "never")] == [6, 4, 6]
        assert all((each == bits).all() for each in found.values())  # the first rank, and the last
    everything = torch.arange(64).double()
    ranks = np.log2(64) - np.log2(1 + everything.numpy())
    assert untraced(63) == pytest.approx(ranks.mean())


def test_canaries_that_are_inserted_often_are_exposed_without_noise_and_others_are_not(
    texts: Subject,
) -> None:
    """Would catch canaries that never reach training, or a null that has been trained on."""
    secrets = secrets_of(texts)
    first = next(iter(texts.private.values()))[:300]
    data = secrets.inserted_into(first)
    assert len(data) == 300 + 6 + 4 * 20
    run = LocalRun(texts, 0, data, Randomness.from_seed(0), noisy=False)
    for _ in range(25):
        run.round()
    losses = Losses(texts, 0, torch.Generator().manual_seed(0))
    bits = secrets.exposures(lambda each: losses.gained(run.model, each))
    assert bits["often"].mean() > 4
    assert bits["never"].mean() < 3
    assert float(losses.gained(texts.model, secrets.never).abs().max()) < 1e-6


@pytest.mark.slow
def test_exposure_of_a_run_has_its_control_and_its_null(texts: Subject) -> None:
    """Would catch a statistic without its control, or a bound on rounds that is not told."""
    results = list(exposure.ATTACK.run(texts))
    assert [r.statistic for r in results] == [
        "bits of exposure of a secret in 32 texts",
        "bits of exposure of a secret in one text",
    ]
    for result in results:
        assert result.value is not None
        assert result.control is not None
        assert result.baseline is not None
        assert result.budget["rounds"] == 8
    short = list(exposure.ATTACK.run(texts.within(Clock(1e-9))))
    assert all(r.outcome in ("inconclusive", "found") for r in short)
    assert short[0].budget["rounds"] == 1
