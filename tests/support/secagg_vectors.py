"""One session with fixed entropy, as JSON for other implementations; run as a script it writes the file anew.

All that is drawn comes from SHA-256("fedblocks test vectors|NAME|COUNTER") with the drawing company's name and a
counter from 0: a key or seed is one hash, a nonce its first 12 bytes, a Shamir coefficient two hashes,
big-endian, mod the prime. Order of drawing: identity key, channel key, mask key, seed, coefficients of the seed's
polynomial from the highest power down, those of the mask key's, then a nonce for each peer in the order of names.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from fedblocks.privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKey,
    ChannelKeys,
    CompanySession,
    Confirmation,
    Confirmations,
    Identity,
    Member,
    Roster,
    Session,
    Survivors,
    UnmaskShares,
    keys,
    shamir,
    wire,
)
from fedblocks.privacy.secure_aggregation.messages import transcript

FILE = Path(__file__).parents[1] / "vectors" / "secure_aggregation.json"
COHORT = ("ada", "bob", "cyd", "dan")
DROPPED = "dan"  # after its advert
ALIVE = ("ada", "bob", "cyd")
LENGTH, BITS = 40, 22


class Entropy:
    def __init__(self, name: str) -> None:
        self.name, self.counter = name, 0

    def hash(self) -> bytes:
        text = f"fedblocks test vectors|{self.name}|{self.counter}"
        self.counter += 1
        return hashlib.sha256(text.encode()).digest()

    def token_bytes(self, size: int) -> bytes:
        return self.hash()[:size]

    def randbelow(self, bound: int) -> int:
        return int.from_bytes(self.hash() + self.hash(), "big") % bound

    @contextmanager
    def used(self) -> Iterator[None]:
        with (
            patch.object(secrets, "token_bytes", self.token_bytes),
            patch.object(secrets, "randbelow", self.randbelow),
            patch.object(keys, "new_private_key", self.hash),
        ):
            yield


class Play:
    """The session, up to the point that a tampered message is for."""

    def __init__(self) -> None:
        entropy = {name: Entropy(name) for name in COHORT}
        self.identities = {name: Identity(entropy[name].hash()) for name in COHORT}
        self.roster = Roster({name: identity.public for name, identity in self.identities.items()})
        self.members = {name: Member(name, i, self.roster) for name, i in self.identities.items()}
        self.session = Session(
            run="Zürich-1", round=7, label="block-2", model_digest=b"M" * 32, settings_digest=b"S" * 32,
            cohort=COHORT, threshold=3, length=LENGTH, bits=BITS,
        )  # fmt: skip
        self.channel_keys = {name: ChannelKeys(entropy[name].hash()) for name in COHORT}
        self.channels = {
            name: key.signed(self.members[name], self.session.run, self.session.settings_digest)
            for name, key in self.channel_keys.items()
        }
        self.companies: dict[str, CompanySession] = {}
        for name in COHORT:
            with entropy[name].used():
                self.companies[name] = self.start(name)
        self.secrets = {
            name: {
                "mask_private": company._private,
                "mask_public": company.advert().public,
                "seed": company._seed,
                "own_shares": company._shares[name],
            }
            for name, company in self.companies.items()
        }
        self.adverts = {name: company.advert() for name, company in self.companies.items()}
        base = np.arange(LENGTH, dtype=np.uint32)
        self.residues = {name: (base * (77 + i) * 4099) % 2**BITS for i, name in enumerate(COHORT)}

    def start(self, name: str, session: Session | None = None, **channels: ChannelKey) -> CompanySession:
        again = ChannelKeys.from_bytes(self.channel_keys[name].to_bytes())
        return CompanySession.start(
            session or self.session, self.members[name], again, self.channels | channels, 3
        )

    def adverts_for(self, name: str) -> dict[str, Advert]:
        return {peer: advert.for_recipient(name) for peer, advert in self.adverts.items()}

    def mask(self) -> dict[str, np.ndarray]:
        return {
            name: self.companies[name].mask(self.residues[name], self.adverts_for(name)) for name in ALIVE
        }

    def survivors(self) -> Survivors:
        return Survivors(session=self.session.digest(), names=ALIVE)

    def confirm(self) -> dict[str, Confirmation]:
        return {name: self.companies[name].confirm(self.survivors()) for name in ALIVE}

    def aggregation(self, masked: dict[str, np.ndarray], confirmed: dict[str, Confirmation]) -> Aggregation:
        """The coordinator's side, ready for shares."""
        aggregation = Aggregation(self.session, self.roster)
        for name, advert in self.adverts.items():
            aggregation.add_advert(name, advert)
        aggregation.close_adverts()
        for name, vector in masked.items():
            aggregation.add_masked(name, vector)
        aggregation.close_masked()
        for name, confirmation in confirmed.items():
            aggregation.add_confirmation(name, confirmation)
        aggregation.close_confirmations()
        return aggregation


def vectors() -> dict[str, Any]:
    """Everything, recomputed."""
    play = Play()
    digest = play.session.digest()
    masked, confirmed = play.mask(), play.confirm()
    proof = Confirmations(
        session=digest, signatures={name: confirmation.signature for name, confirmation in confirmed.items()}
    )
    answers = {name: play.companies[name].unmask(proof) for name in ALIVE}
    aggregation = play.aggregation(masked, confirmed)
    for name, answer in answers.items():
        aggregation.add_shares(name, answer)
    total, _ = aggregation.open()
    companies = {
        name: {
            "identity_private": play.identities[name].private_bytes().hex(),
            "identity_public": play.identities[name].public.hex(),
            "channel_private": play.channel_keys[name]._private.hex(),
            "channel_public": play.channels[name].public.hex(),
            "channel_signature": play.channels[name].signature.hex(),
            **{field: value.hex() for field, value in play.secrets[name].items()},
            "advert": play.adverts[name].to_bytes().hex(),
            "residues": play.residues[name].tolist(),
        }
        for name in COHORT
    }
    for name in ALIVE:
        companies[name] |= {
            "masked": masked[name].tobytes().hex(),
            "confirmation": confirmed[name].to_bytes().hex(),
            "shares": answers[name].to_bytes().hex(),
        }
    return {
        "version": wire.VERSION,
        "about": "One secure sum of privacy/secure_aggregation.md with fixed entropy; see secagg_vectors.py.",
        "roster_digest": play.roster.digest.hex(),
        "session": play.session.to_bytes().hex(),
        "session_digest": digest.hex(),
        "transcript": transcript(digest, play.adverts).hex(),
        "companies": companies,
        "dropped": DROPPED,
        "survivors": play.survivors().to_bytes().hex(),
        "confirmations": proof.to_bytes().hex(),
        "sum": total.tolist(),
        "tampered": tampered(play, masked, proof, answers["ada"]),
    }


def tampered(
    play: Play, masked: dict[str, np.ndarray], proof: Confirmations, answer: UnmaskShares
) -> list[dict[str, str]]:
    """Bent messages for `step`, each with the code that must refuse it; see `apply` in the test."""
    found: list[dict[str, str]] = []

    def add(step: str, what: str, code: str, data: bytes) -> None:
        found.append({"step": step, "what": what, "code": code, "bytes": data.hex()})

    def flipped(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def structure(step: str, data: bytes) -> None:
        add(step, "nothing", "malformed", b"")
        add(step, "version 1", "malformed", data[:4] + b"\x01" + data[5:])
        add(step, "another kind", "malformed", data[:5] + b"\x63" + data[6:])
        add(step, "last byte missing", "malformed", data[:-1])
        add(step, "a byte too many", "malformed", data + b"\0")

    session, digest = play.session.to_bytes(), play.session.digest()
    structure("session", session)
    add("session", "threshold 1", "bad_session", session[:-12] + wire.u32(1) + session[-8:])
    add("session", "threshold 2 of 4", "low_threshold", session[:-12] + wire.u32(2) + session[-8:])
    add("session", "33 bits", "bad_session", session[:-4] + wire.u32(33))
    add("session", "2^31 values", "bad_session", session[:-8] + wire.u32(2**31) + session[-4:])
    add("session", "zoe in dan's place", "not_in_roster", session.replace(b"dan", b"zoe"))

    public, signature = play.channels["bob"].public, play.channels["bob"].signature
    add("channel", "another key", "bad_signature", play.channels["cyd"].public + signature)
    add("channel", "another's signature", "bad_signature", public + play.channels["cyd"].signature)

    bob = play.adverts["bob"].for_recipient("ada")
    data = bob.to_bytes()
    structure("advert", data)
    add("advert", "another session", "wrong_session", data.replace(digest, bytes(32)))
    add("advert", "a bit of the mask key", "bad_signature", flipped(data, data.index(bob.public)))
    add("advert", "a bit of the commitment", "bad_signature", flipped(data, data.index(bob.commitment)))
    add("advert", "a bit of the signature", "bad_signature", flipped(data, data.index(bob.signature)))
    add("advert", "a bit of the sealed share", "bad_share", flipped(data, data.index(bob.shares["ada"]) + 20))
    add(
        "advert", "the share sealed for cyd", "bad_share",
        data.replace(bob.shares["ada"], play.adverts["bob"].shares["cyd"]),
    )  # fmt: skip

    def set_of(*names: str) -> bytes:
        return Survivors(session=digest, names=names).to_bytes()

    structure("survivors", set_of(*ALIVE))
    add("survivors", "another session", "wrong_session", set_of(*ALIVE).replace(digest, bytes(32)))
    add("survivors", "bob twice", "malformed", set_of("ada", "bob", "bob", "cyd"))
    add("survivors", "not in order", "malformed", set_of("bob", "ada", "cyd"))
    add("survivors", "without the recipient", "bad_survivors", set_of("bob", "cyd", "dan"))
    add("survivors", "zoe, who sent no advert", "bad_survivors", set_of("ada", "bob", "cyd", "zoe"))
    add("survivors", "two of four", "small_cohort", set_of("ada", "bob"))
    add("second survivors", "another set after the first", "second_set", set_of(*COHORT))

    signatures = dict(proof.signatures)

    def proof_of(names: dict[str, bytes]) -> bytes:
        return Confirmations(session=digest, signatures=names).to_bytes()

    structure("confirmations", proof.to_bytes())
    few = {name: signatures[name] for name in ("ada", "bob")}
    add("confirmations", "another session", "wrong_session", proof.to_bytes().replace(digest, bytes(32)))
    add("confirmations", "two of three", "too_few", proof_of(few))
    add("confirmations", "bob's under cyd's name", "bad_signature", proof_of(few | {"cyd": few["bob"]}))
    add(
        "confirmations", "a bit of bob's", "bad_signature",
        proof_of(signatures | {"bob": flipped(signatures["bob"], 0)}),
    )  # fmt: skip
    add(
        "confirmations", "one of dan, who dropped", "bad_survivors", proof_of(signatures | {"dan": bytes(64)})
    )

    vector = masked["ada"].tobytes()
    add("masked", "last byte missing", "bad_vector", vector[:-1])
    add("masked", "a word too many", "bad_vector", vector + bytes(4))
    add("masked", "padding that is not zero", "bad_vector", vector[:-1] + b"\x80")

    data = answer.to_bytes()
    structure("shares", data)
    add("shares", "another session", "wrong_session", data.replace(digest, bytes(32)))
    table = dict(answer.seeds) | {"dan": answer.keys["dan"]}
    head = wire.header(wire.UNMASK_SHARES) + wire.blob(digest)
    both = head + wire.table(table) + wire.table(answer.keys)
    add("shares", "seed and key share of dan", "bad_survivors", both)
    add(
        "shares", "a seed share for dan, who dropped", "bad_survivors", head + wire.table(table) + wire.u32(0)
    )
    prime = answer.seeds | {"bob": shamir.PRIME.to_bytes(33, "big")}  # type: ignore[operator]
    add(
        "shares", "a share that is the prime", "bad_share", head + wire.table(prime) + wire.table(answer.keys)
    )
    bent = answer.seeds | {"bob": flipped(answer.seeds["bob"], 32)}  # type: ignore[operator]
    add("shares", "a bit of a share", "bad_share", head + wire.table(bent) + wire.table(answer.keys))
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", "utf-8")
