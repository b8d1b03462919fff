"""The committed vectors: recomputed with fixed keys, and once more by hand from the specification's text."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from support.secagg import refused
from support.secagg_vectors import ALIVE, BITS, COHORT, FILE, LENGTH, Play, vectors

from fedblocks.privacy.secure_aggregation import (
    Advert,
    ChannelKey,
    Confirmations,
    Session,
    Survivors,
    UnmaskShares,
)

VECTORS: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
DOMAIN = "fedblocks secure aggregation v2"


def test_the_vectors_are_what_the_code_computes() -> None:
    """Would catch any change of the wire that leaves the version as it was."""
    assert vectors() == VECTORS


def apply(step: str, data: bytes) -> None:
    """Give a bent message to whom it is for: to ada, or with `masked` and `shares` to the coordinator."""
    play = Play()
    ada = play.companies["ada"]
    if step == "session":
        play.start("ada", Session.from_bytes(data))
    elif step == "channel":
        play.start("ada", bob=ChannelKey(data[:32], data[32:]))
    elif step == "advert":
        ada.mask(play.residues["ada"], play.adverts_for("ada") | {"bob": Advert.from_bytes(data)})
    masked = play.mask()
    if step == "survivors":
        ada.confirm(Survivors.from_bytes(data))
    confirmed = play.confirm()
    if step == "second survivors":
        ada.confirm(Survivors.from_bytes(data))
    elif step == "confirmations":
        ada.unmask(Confirmations.from_bytes(data))
    elif step == "masked":
        play.aggregation({"ada": np.frombuffer(data, np.uint8)}, confirmed)
    elif step == "shares":
        signatures = {name: confirmation.signature for name, confirmation in confirmed.items()}
        proof = Confirmations(session=play.session.digest(), signatures=signatures)
        answers = {name: play.companies[name].unmask(proof) for name in ALIVE}
        aggregation = play.aggregation(masked, confirmed)
        for name, answer in answers.items():
            aggregation.add_shares(name, UnmaskShares.from_bytes(data) if name == "ada" else answer)
        aggregation.open()


@pytest.mark.parametrize("bent", VECTORS["tampered"], ids=lambda bent: f"{bent['step']}: {bent['what']}")
def test_a_tampered_message_is_refused_with_its_code(bent: dict[str, str]) -> None:
    refused(bent["code"], apply, bent["step"], bytes.fromhex(bent["bytes"]))


# By hand, from the text of privacy/secure_aggregation.md


def blob(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def hkdf(secret: bytes, salt: bytes, purpose: str, *context: bytes) -> bytes:
    info = blob(DOMAIN.encode()) + blob(purpose.encode()) + b"".join(map(blob, context))
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def keystream(key: bytes) -> list[int]:
    from Crypto.Cipher import AES

    octets = AES.new(key, AES.MODE_CTR, nonce=b"").encrypt(bytes(4 * LENGTH))
    return [int.from_bytes(octets[at : at + 4], "little") for at in range(0, len(octets), 4)]


def test_masked_vectors_by_hand() -> None:
    digest = bytes.fromhex(VECTORS["session_digest"])
    assert hashlib.sha256(bytes.fromhex(VECTORS["session"])).digest() == digest
    company = {name: VECTORS["companies"][name] for name in COHORT}
    for name in ALIVE:
        own = bytes.fromhex(company[name]["mask_public"])
        values = list(company[name]["residues"])
        seed = bytes.fromhex(company[name]["seed"])
        streams = [(1, hkdf(seed, digest, "self mask", name.encode()))]
        for peer in COHORT:
            if peer == name:
                continue
            other = bytes.fromhex(company[peer]["mask_public"])
            private = X25519PrivateKey.from_private_bytes(bytes.fromhex(company[name]["mask_private"]))
            secret = private.exchange(X25519PublicKey.from_public_bytes(other))
            ends = sorted([(name.encode(), own), (peer.encode(), other)])
            key = hkdf(secret, digest, "pair mask", *ends[0], *ends[1])
            streams.append((1 if name < peer else -1, key))
        for sign, key in streams:
            values = [v + sign * mask for v, mask in zip(values, keystream(key), strict=True)]
        values = [v % 2**BITS for v in values]
        # 40 values of 22 bits: 16 lanes, 11 words, 3 columns, 8 values of padding.
        values += [0] * 8
        words = [[0] * 3 for _ in range(11)]
        for column in range(3):
            number = sum(values[lane * 3 + column] << (BITS * lane) for lane in range(16))
            for word in range(11):
                words[word][column] = number >> (32 * word) & 0xFFFFFFFF
        packed = b"".join(word.to_bytes(4, "little") for row in words for word in row)
        assert packed.hex() == company[name]["masked"]


def test_signatures_by_hand() -> None:
    roster = bytes.fromhex(VECTORS["roster_digest"])
    session = bytes.fromhex(VECTORS["session_digest"])
    names = (3).to_bytes(4, "big") + b"".join(blob(name.encode()) for name in ALIVE)
    table = b"".join(
        blob(name.encode()) + blob(bytes.fromhex(VECTORS["companies"][name]["identity_public"]))
        for name in COHORT
    )
    assert hashlib.sha256(b"FBSA\x02\x09" + (4).to_bytes(4, "big") + table).digest() == roster
    for name in ALIVE:
        company = VECTORS["companies"][name]
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(company["identity_private"]))

        def signed(purpose: str, *parts: bytes, name: str = name, key: Ed25519PrivateKey = key) -> str:
            fields = (DOMAIN.encode(), purpose.encode(), roster, name.encode(), *parts)
            return key.sign(b"".join(map(blob, fields))).hex()

        channel = signed(
            "channel key", "Zürich-1".encode(), b"S" * 32, bytes.fromhex(company["channel_public"])
        )
        assert channel == company["channel_signature"]
        advert = Advert.from_bytes(bytes.fromhex(company["advert"]))
        assert signed("advert", session, advert.public, advert.commitment) == advert.signature.hex()
        survivors = signed("survivors", session, bytes.fromhex(VECTORS["transcript"]), names)
        assert company["confirmation"] == (b"FBSA\x02\x07" + blob(session)).hex() + "00000040" + survivors


def test_the_sum_by_hand() -> None:
    rows = [VECTORS["companies"][name]["residues"] for name in ALIVE]
    assert VECTORS["sum"] == [sum(column) % 2**BITS for column in zip(*rows, strict=True)]
