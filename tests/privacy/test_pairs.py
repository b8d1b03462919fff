"""What a simulation computes once for both ends of a pair: the same bits, bounded, and only while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.secagg import Cohort, a_session, play, refused
from support.secagg_vectors import vectors

from fedblocks.client import app as client_app
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.secure_aggregation import ChannelKeys, computed_once, keys, masks, pairs
from fedblocks.settings import SimulationSettings


@pytest.fixture
def once() -> Iterator[None]:
    with computed_once():
        yield


def pair_keys(digest: bytes = b"d" * 32, names: tuple[str, str] = ("ada", "bob")) -> list[bytes]:
    """What both ends of a pair of fixed keys derive in one session."""
    ada, bob = ChannelKeys(b"1" * 32), ChannelKeys(b"2" * 32)
    found = [*ada.share_keys(digest, *names, bob.public), *bob.share_keys(digest, *names[::-1], ada.public)]
    ends = (names[0], ada.public), (names[1], bob.public)
    found.append(masks.pair_mask_key(keys.loaded(b"1" * 32), digest, *ends)[0])
    found.append(masks.pair_mask_key(keys.loaded(b"2" * 32), digest, *ends[::-1])[0])
    return found


def test_no_bit_differs(once: None) -> None:
    """Oracle: the committed vectors, and each key computed at its own end. Would catch a key that is kept by less
    than all that it depends on: another session's, another direction's, another purpose's, other names'."""
    kept = [pair_keys(), pair_keys(b"e" * 32), pair_keys(names=("bob", "ada")), pair_keys()]
    recomputed = vectors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_kept", None)
        fresh = [pair_keys(), pair_keys(b"e" * 32), pair_keys(names=("bob", "ada")), pair_keys()]
        assert recomputed == vectors()
    assert kept == fresh
    assert len({*kept[0], *kept[1], *kept[2]}) == 9  # of each: two directions and a mask


def test_each_pair_agrees_once(once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a simulation that computes a pair's secrets at both ends, or its channel's in every round."""
    agreed: list[bytes] = []
    original = keys.agree

    def counted(private: object, public: bytes) -> bytes:
        agreed.append(public)
        return original(private, public)  # type: ignore[arg-type]

    monkeypatch.setattr(keys, "agree", counted)
    monkeypatch.setattr(masks, "agree", counted)
    ada, bob = ChannelKeys.generate(), ChannelKeys.generate()
    for digest in (b"d" * 32, b"e" * 32):
        ada.share_keys(digest, "ada", "bob", bob.public)
        bob.share_keys(digest, "bob", "ada", ada.public)
    assert len(agreed) == 1
    pair_keys()
    assert len(agreed) == 1 + 2


def test_what_the_other_end_has_taken_is_forgotten_and_the_rest_is_bounded(
    once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch secrets that add up over the rounds of a long simulation, and a bound that loses an answer."""
    pair_keys()
    assert pairs._kept is not None
    assert len(pairs._kept) == 1  # the channel's, for the next round
    monkeypatch.setattr(pairs, "MOST", 5)
    made = [pairs.once((number.to_bytes(2, "big"),), lambda n=number: bytes([n])) for number in range(40)]  # type: ignore[misc]
    assert made == [bytes([number]) for number in range(40)]
    assert len(pairs._kept) == 5
    with ThreadPoolExecutor(4) as pool:
        inputs = [(bytes([i % 7]),) for i in range(400)]
        assert list(pool.map(lambda one: pairs.once(one, lambda: one[0] * 2), inputs)) == [
            one[0] * 2 for one in inputs
        ]


def test_an_unusable_key_is_refused_every_time(once: None) -> None:
    """Would catch an answer that is kept for a key which no agreement is made with."""
    for _ in range(2):
        refused("bad_key", lambda: ChannelKeys(b"1" * 32).share_keys(b"d" * 32, "ada", "bob", bytes(32)))


def test_a_sum_with_dropouts_comes_out(once: None) -> None:
    """Would catch a key that is taken by whom it is not meant for, where a company has dropped out in between."""
    cohort = Cohort(a_session(7))
    total, survivors = play(cohort, dict(zip(cohort.session.cohort, (4, 4, 1, 4, 4, 4, 4), strict=True)))
    assert len(survivors) == 6
    assert np.array_equal(total, cohort.total(survivors))


def test_off_but_in_simulations(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch secrets that are kept where nobody simulates, as in a real company's agent, or after the end."""
    seen: list[bool] = []
    original = client_app.train_block

    def noted(*given: object) -> object:
        seen.append(pairs._kept is not None)
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(client_app, "train_block", noted)
    assert pairs._kept is None
    simulate(
        prepare(
            small.model_copy(update={"training": small.training.model_copy(update={"rounds": 1})}),
            tmp_path / "run",
        )
    )
    assert seen == [True] * 5
    assert pairs._kept is None
    with pytest.raises(ProtocolError), computed_once():
        raise ProtocolError("malformed", "")
    assert pairs._kept is None
