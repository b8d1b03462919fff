"""Signatures that a process checks once: what is kept of them, and that it cannot be poisoned."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedblocks.errors import ProtocolError
from fedblocks.privacy.secure_aggregation import Identity, Member, Roster
from fedblocks.privacy.secure_aggregation.identity import ADVERT, SURVIVORS, _verified


def members() -> tuple[Member, Member, Roster]:
    ada, bob = Identity.generate(), Identity.generate()
    roster = Roster({"ada": ada.public, "bob": bob.public})
    return Member("ada", ada, roster), Member("bob", bob, roster), roster


def refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except ProtocolError as error:
        return error.code == "bad_signature"
    return False


def test_a_kept_signature_vouches_for_nothing_but_its_own_bytes() -> None:
    """Would catch a cache that leaves out the key, the purpose, the sender, the roster, a part or the signature."""
    ada, bob, roster = members()
    parts = (b"session", b"key", b"commitment")
    signature = ada.sign(ADVERT, *parts)
    roster.check(signature, ADVERT, "ada", *parts)
    roster.check(signature, ADVERT, "ada", *parts)
    others = Roster({"ada": roster.members["ada"]})
    foreign = Roster({"ada": roster.members["bob"], "bob": roster.members["ada"]})
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    cases: list[Callable[[], None]] = [
        lambda: roster.check(signature, SURVIVORS, "ada", *parts),
        lambda: roster.check(signature, ADVERT, "bob", *parts),
        lambda: roster.check(flipped, ADVERT, "ada", *parts),
        lambda: roster.check(signature, ADVERT, "ada", *parts[:2]),
        lambda: roster.check(signature, ADVERT, "ada", b"session", b"keycommitment"),
        lambda: roster.check(bob.sign(ADVERT, *parts), ADVERT, "ada", *parts),
        lambda: others.check(signature, ADVERT, "ada", *parts),
        lambda: foreign.check(signature, ADVERT, "ada", *parts),
    ]
    assert [refused(case) for case in cases] == [True] * len(cases)
    assert [refused(case) for case in cases] == [True] * len(cases)  # no failure was kept as good


def test_a_failure_is_never_kept_and_checked_anew() -> None:
    """Would catch a cache that answers for a bad signature, and one that checks a good one again and again."""
    ada, _, roster = members()
    good = ada.sign(ADVERT, b"a")
    before = _verified.cache_info()
    for _ in range(3):
        assert refused(lambda: roster.check(bytes(64), ADVERT, "ada", b"a"))
    after = _verified.cache_info()
    assert (after.currsize, after.hits, after.misses) == (before.currsize, before.hits, before.misses + 3)
    for _ in range(3):
        roster.check(good, ADVERT, "ada", b"a")
    assert _verified.cache_info().hits == after.hits + 2


def test_no_flood_of_signatures_outgrows_the_cache_or_turns_an_answer() -> None:
    """Would catch a cache without a bound, and answers that differ from the library's once entries were dropped."""
    ada, _, roster = members()
    most = _verified.cache_info().maxsize
    assert most is not None
    kept = ada.sign(ADVERT, b"first")
    roster.check(kept, ADVERT, "ada", b"first")
    for number in range(most + 10):
        part = number.to_bytes(4, "big")
        roster.check(ada.sign(ADVERT, part), ADVERT, "ada", part)
    assert _verified.cache_info().currsize == most
    key = Ed25519PublicKey.from_public_bytes(roster.members["ada"])
    key.verify(kept, roster.statement(ADVERT, "ada", b"first"))
    roster.check(kept, ADVERT, "ada", b"first")
    for place, bit in itertools.product((0, 31, 63), (1, 128)):
        altered = bytes(byte ^ (bit if i == place else 0) for i, byte in enumerate(kept))
        assert refused(lambda altered=altered: roster.check(altered, ADVERT, "ada", b"first"))  # type: ignore[misc]
