"""Membership in a sum: the likelihood ratio against exact laws, the simulation against releases, the outcomes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedblocks.errors import InputError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.mechanisms.banded import BandedNoise, BandedStream
from fedblocks.privacy.mechanisms.skellam import SkellamNoise
from fedblocks.privacy.randomness import Randomness
from fedblocks.settings import SimulationSettings
from fedblocks.settings.load import validated
from fedblocks.threat_model.attacks import Attack
from fedblocks.threat_model.attacks import cohort_differencing as differencing
from fedblocks.threat_model.attacks.sum_membership import ATTACK, Cases, draw_cases
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.membership.simulation import Candidates
from fedblocks.threat_model.membership.sums import (
    Hypotheses,
    Participation,
    gradients_of,
    log_ratio,
)
from fedblocks.threat_model.membership.verdict import judged, left_out
from fedblocks.threat_model.releases import deviation, released
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.roc import auc, gaussian_auc, pooled_auc
from fedblocks.threat_model.subject import Subject


@pytest.fixture(scope="module")
def subject(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A prepared run before its first round."""
    privacy = small.privacy.model_copy(update={"epsilon": 1e5, "noise_multiplier": 0.2})
    settings = small.model_copy(update={"privacy": privacy})
    run = prepare(settings, tmp_path_factory.mktemp("membership") / "run")
    return Subject.of(run, block=0)


@pytest.mark.parametrize("attack", [ATTACK, differencing.ATTACK], ids=lambda each: each.name)
@pytest.mark.parametrize("cases", [0, 1, 3])
def test_a_clock_that_ends_after_a_few_cases_fails_no_audit(
    subject: Subject, attack: Attack, cases: int
) -> None:
    """Would catch an audit, and with it the cell of a sweep, that fails on a slow machine: of one member or one other
    there is no area."""

    class Ending(Clock):
        looked = 0

        @property
        def spent(self) -> float:
            self.looked += 1
            return 0.0 if self.looked <= cases else 2 * self.seconds

    found = [each for each in attack.run(subject.within(Ending(60.0))) if isinstance(each, Result)]
    assert [each.outcome for each in found if each.statement == "membership"] == ["inconclusive"]


def test_ratio_is_that_of_the_densities() -> None:
    """Would catch a wrong sign, a lost half, or a mean of logarithms: against scipy's densities of the mixture."""
    rng = np.random.default_rng(0)
    g, y, s = rng.normal(size=(4, 6)), rng.normal(size=6), 0.7
    member = np.mean([stats.multivariate_normal.pdf(y, each, s**2 * np.eye(6)) for each in g])
    other = stats.multivariate_normal.pdf(y, np.zeros(6), s**2 * np.eye(6))
    for rate in (1.0, 0.3):
        found = log_ratio(g @ y, g @ g.T, s, Hypotheses(np.eye(4), rate))
        assert float(found) == pytest.approx(math.log(rate * member / other + 1 - rate), abs=1e-9)


@pytest.mark.parametrize(
    "member", [[], [True], [True, False], [True, True, False], [False, True, False, True]]
)
def test_few_cases_are_told_apart_or_said_to_be_too_few(member: list[bool]) -> None:
    """Would catch an audit that ends with an error where its time ran out after one member or one other."""
    scores, grams = np.arange(len(member), dtype=float), np.zeros((len(member), 2, 2))
    cases = Cases(np.array(member, dtype=bool), scores, scores, Candidates(grams, 1), 400)
    assert (cases.too_few == "") == (min(member.count(True), member.count(False)) >= 2)
    if cases.too_few:
        assert f"after {len(member)} of 400 cases" in cases.too_few
        with pytest.raises(InputError, match="at least two members"):
            auc(*cases.split(scores))
    else:
        assert auc(*cases.split(scores)).n == len(member)


def test_skellam_noise_has_the_same_ratio() -> None:
    """Would catch a Gaussian ratio where a discrete law differs: against exact probabilities, with rounding."""
    size = 400
    noise = SkellamNoise(
        dimension=size, clip=1.0, companies=3, tolerated=0, noise_multiplier=0.05, scale=2.0**15
    )
    rng = np.random.default_rng(1)
    g = rng.normal(size=size)
    g /= np.linalg.norm(g)
    total = sum(
        noise.encode(g if i == 0 else np.zeros(size), Randomness.from_seed(0, i)).astype(np.int64)
        for i in range(3)
    )
    y = noise.decode_sum((total & (2**noise.bits - 1)).astype(np.uint32))
    levels, whole = np.round(y * noise.scale).astype(int), np.floor(g * noise.scale)
    mu = 3 * noise.variance_share / 2
    share = g * noise.scale - whole
    pmf = stats.skellam.logpmf
    inside = np.logaddexp(
        np.log1p(-share) + pmf(levels - whole, mu, mu), np.log(share) + pmf(levels - whole - 1, mu, mu)
    )
    exact = float((inside - pmf(levels, mu, mu)).sum())
    spread = (3 * noise.variance_share) ** 0.5 / noise.scale
    found = float(log_ratio(np.array([g @ y]), np.array([[1.0]]), spread, Hypotheses(np.eye(1), 1.0)))
    assert abs(exact) > 10
    assert found == pytest.approx(exact, abs=0.02)


def test_noise_in_bands_sums_to_its_variance() -> None:
    """Would catch the variance of independent noise where later steps take a step's noise back."""
    noise = BandedNoise(steps=6, bands=3, separation=3, noise_multiplier=1.0)
    stream = BandedStream(noise, 20_000, 1.0, Randomness.from_seed(0))
    nothing = ClippedSum(torch.zeros(20_000, dtype=torch.float64), 1.0, 0)
    total = sum(stream.release(nothing) for _ in range(6))
    assert isinstance(total, torch.Tensor)
    assert float(total.var()) == pytest.approx(noise.sum_variance, rel=0.05)
    assert noise.sum_variance < 5


def test_area_of_known_gradients_follows_the_gaussian_roc() -> None:
    """Would catch a likelihood ratio that is not on one scale over candidates: against the closed form."""
    rng = np.random.default_rng(2)
    lengths = rng.uniform(0.2, 1.0, 4000)
    members = rng.random(4000) < 0.5
    # One draw, which happens and which the attacker knows: all of the Gram matrix is that gradient's square.
    candidates = Candidates(lengths[:, None, None] ** 2 * np.ones((1, 2, 2)), 1)
    scores = candidates.scores(members, 0.5, Participation(1, 1.0), 1, rng)
    found = auc(scores[members], scores[~members])
    assert found.value == pytest.approx(pooled_auc(lengths / 0.5), abs=0.025)
    assert found.value < gaussian_auc(1 / 0.5)


def test_secret_batches_weaken_one_release_and_rounds_make_it_up() -> None:
    """Would catch a rate that is ignored, or rounds that are averaged instead of added."""
    rng = np.random.default_rng(3)
    candidates = Candidates(np.ones((3000, 2, 2)), 1)
    once, often = Participation(1, 0.2), 40
    assert candidates.auc(0.5, once, 1, 0) == pytest.approx(gaussian_auc(2.0, 0.2), abs=0.02)
    assert candidates.auc(0.5, once, often, 0) > 0.9
    nobody = np.zeros(3000, dtype=bool)
    ratios = np.exp(candidates.scores(nobody, 2.0, once, 3, rng))
    assert ratios.mean() == pytest.approx(1.0, abs=0.02)  # a likelihood ratio's mean without the candidate


def test_several_steps_take_an_example_several_times() -> None:
    """Would catch local steps that count as one: the area's growth, and how often it is taken."""
    candidates = Candidates(np.ones((3000, 4, 4)), 2)
    one = candidates.auc(3.0, Participation(1, 1.0), 1, 0)
    assert candidates.auc(3.0, Participation(4, 1.0), 1, 0) > one + 0.1
    hypotheses = Hypotheses.of(Participation(3, 0.5), 2, np.random.default_rng(0))
    assert hypotheses.weights.sum(1).max() == 3
    assert hypotheses.weights.sum(1).mean() == pytest.approx(1.5, abs=0.25)


def test_the_attacker_has_the_companys_gradient(subject: Subject) -> None:
    """Would catch a gradient in another order, or clipped otherwise than the mechanism clips it."""
    block, mechanism = 0, subject.mechanism(0)
    victim = subject.victims(1, "one")
    release = released(subject, block, victim, "one", noisy=False).vector
    g = gradients_of(subject.problem(block), mechanism, victim, 64, torch.Generator().manual_seed(0)).double()
    cosines = (g @ release) / (g.norm(dim=1) * release.norm())
    assert float(g.norm(dim=1).max()) <= mechanism.max_grad_norm  # type: ignore[union-attr]
    assert float(cosines.max()) > 0.9


def test_simulated_releases_score_as_real_ones(subject: Subject) -> None:
    """Would catch a simulation that flatters or belittles the attack: against the mechanism's own releases."""
    cases = draw_cases(subject, 0, 160)
    certain = Participation.of(subject.mechanism(0)).certain
    noise = deviation(subject.mechanism(0))
    hypotheses = Hypotheses.of(certain, cases.products.shape[1], np.random.default_rng(0))
    real = auc(*cases.split(log_ratio(cases.products, cases.candidates.drawn, noise, hypotheses)))
    assert real.low <= cases.candidates.auc(noise, certain, 1, 0) <= real.high
    assert real.low > 0.6


def test_nothing_is_claimed_when_the_interval_holds_a_half() -> None:
    """Would catch a claim from an interval with 1/2 in it, a silent failure of the control, and a passed ceiling."""
    rng = np.random.default_rng(4)
    same, better = rng.normal(size=(2, 200)), rng.normal(size=200) + 1
    ok = auc(better + 9, same[0])
    assert judged(same[0], same[1], control=ok, ceiling=None).outcome == "not found"
    assert judged(same[0], same[1], control=auc(same[0], same[1]), ceiling=None).outcome == "inconclusive"
    assert judged(same[0], same[1], control=ok, ceiling=None, cut_short="no time").outcome == "inconclusive"
    found = judged(better, same[0], control=ok, ceiling=0.99)
    assert found.outcome == "found"
    assert judged(better, same[0], control=ok, ceiling=0.6).outcome == "refuted"
    assert left_out(found, 0.1).value.value == pytest.approx(0.5 + 0.1 * (found.value.value - 0.5))


def results(
    small: SimulationSettings, folder: Path, seconds: float = 60.0, **privacy: object
) -> list[Result]:
    raw = small.model_dump()
    raw["privacy"] |= {"epsilon": 1e6} | privacy
    subject = Subject.of(prepare(validated(SimulationSettings, raw), folder / "run"), block=0)
    assert ATTACK.applies(subject) is None
    return [each for each in ATTACK.run(subject.within(Clock(seconds))) if isinstance(each, Result)]


def area(found: list[Result], view: str) -> Result:
    return next(each for each in found if each.view.startswith(view) and each.unit == "auc")


def test_a_loose_run_is_found(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch "nothing found" at an epsilon of several hundreds."""
    found = results(small, tmp_path, noise_multiplier=0.2)
    assert any("3,000" in each.reason for each in found)  # what is refused at 0.1% false alarms
    release = area(found, "one company")
    assert release.outcome == "found"
    assert release.value is not None
    assert release.value.low > 0.75
    assert release.ceiling is not None
    assert release.value.value <= release.ceiling + 0.02


@pytest.mark.slow
def test_a_sum_of_much_noise_is_not_found_and_stays_below_its_ceiling(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """A null: at a noise multiplier of 20 the ceiling is .51. Would catch a score that knows who took part."""
    found = results(small, tmp_path, noise_multiplier=20.0)
    for view in ("one company", "the opened sum"):
        release = area(found, view)
        assert release.outcome == "not found"
        assert release.value is not None
        assert release.value.low <= 0.5 <= release.value.high
        assert release.control is not None
        assert release.control.low > 0.85
        assert release.wins_at is not None
        assert 0.2 < release.wins_at < 20


@pytest.mark.parametrize("mode", [{"mode": "secure_step", "colluders": 1}, {"clipping": "automatic"}])
def test_other_mechanisms_are_attacked_as_they_are(
    small: SimulationSettings, tmp_path: Path, mode: dict[str, object]
) -> None:
    """Would catch a likelihood of another noise or another clip: then little would be told apart at z = 0.3."""
    release = area(results(small, tmp_path, noise_multiplier=0.3, **mode), "the opened sum")
    assert release.value is not None
    assert release.value.value > 0.7


def test_a_clock_that_runs_out_says_nothing(small: SimulationSettings, tmp_path: Path) -> None:
    found = results(small, tmp_path, seconds=1e-3, noise_multiplier=0.2)
    assert [each.outcome for each in found] == ["inconclusive"]
    assert "time ran out after 0 of" in found[0].reason
