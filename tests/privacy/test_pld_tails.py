"""Epsilon from a tail that was added up once, against the library that adds it up for every delta."""

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution

from fedblocks.privacy import pld
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.pld_tails import tails_of

DELTAS = (1e-14, 1e-9, 1e-5, 1e-3, 0.1, 0.5, 0.99)


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [(0.1, 0.3, 1), (0.1, 1.0, 7), (0.1, 5.9, 80), (0.5, 1.0, 240), (1e-3, 1.0, 1000), (1.0, 40.0, 1)],
)
def test_its_epsilon_is_the_librarys(rate: float, noise: float, steps: int) -> None:
    """Would catch a bound that is not one: a tail cut too short, one side forgotten, the wrong end of the grid."""
    total = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=2.0**-10, pessimistic_estimate=True
    )
    total = total.self_compose(steps) if steps > 1 else total
    tails = tails_of(total)
    for delta in DELTAS:
        expected = total.get_epsilon_for_delta(delta)
        assert max(tail.epsilon(delta) for tail in tails) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_composition_is_added_up_once_for_all_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an audit that spends a tenth of its time on adding up one distribution again."""
    calls: list[object] = []

    def counted(total: object) -> object:
        calls.append(total)
        return tails_of(total)

    monkeypatch.setattr(pld, "tails_of", counted)
    pld._tails.cache_clear()
    event = GaussianSteps(sampling_rate=0.11, noise_multiplier=1.7, steps=9)
    found = [pld.pld_epsilon([event], 10.0**-k) for k in range(2, 9)]
    assert found == sorted(found)
    assert all(0 < epsilon < math.inf for epsilon in found)
    assert len(calls) == 1
