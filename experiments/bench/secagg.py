"""What secure aggregation costs a company and the coordinator, beside Flower's SecAgg+ primitives.

Whole sessions of the state machines in this process, nothing lost on the way, 22 bits a value. Times are
processor time of one thread. A company's part is everything it computes:

    keys      makes fresh keys, shares of them, and seals a pair for every peer (the channel keys, which live
              for a run, are checked the first time they are seen)
    vector    checks and opens the peers' adverts, quantises, masks, packs
    answer    signs the survivor set, checks the others' signatures, releases its shares

Flower's part is what `flwr.client.mod.secaggplus_mod` computes with the library's own functions and defaults
(2^22 levels, sums mod 2^32, int64 on the wire): key pairs, shares and their encryption, quantisation, masks,
bytes. It signs and verifies nothing.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from ...privacy.quantisation import FixedPoint
from ...privacy.secure_aggregation import (
    Advert,
    Aggregation,
    ChannelKey,
    ChannelKeys,
    CompanySession,
    Identity,
    Member,
    Roster,
    Session,
    lowest_threshold,
)
from .interleaved_timing import median_seconds

P = ParamSpec("P")
T = TypeVar("T")

BITS = 22
COHORTS = (10, 20, 50, 100)
_FLOWER_CLIP, _FLOWER_LEVELS, _FLOWER_MODULUS = 8.0, 1 << 22, 1 << 32


def measure(
    values: int = 1_000_000,
    repeats: int = 7,
    cohorts: tuple[int, ...] = COHORTS,
    figure: Path | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Times by cohort size, the ratio to Flower at the smallest, the vector's time at the largest."""
    vector = np.random.default_rng(0).standard_normal(values)
    vector /= 1.001 * np.linalg.norm(vector)
    rows: list[dict[str, Any]] = []
    for n in cohorts:
        parties = Parties(n, values)
        beside = beside_flower(parties, vector, repeats if n <= 20 else 3)
        # A small cohort's session is short: one alone would be all noise.
        sessions = [parties.session(vector) for _ in range(max(1, 50 // n))]
        medians = {key: round(statistics.median(s[key] for s in sessions), 4) for key in sessions[0]}
        row = {"n": n, **beside, **medians}
        rows.append(row)
        shown = {name: value for name, value in row.items() if name != "bytes_per_value"}
        if len(rows) == 1:
            on_progress("  ".join(f"{name:>9}" for name in shown))
        on_progress("  ".join(f"{value:>{max(len(name), 9)}}" for name, value in shown.items()))
    if figure is not None:
        draw(rows, values, figure)
    first, last = rows[0], rows[-1]
    return {
        "values": values,
        "bits": BITS,
        "bytes_per_value": last["bytes_per_value"],
        "bytes_per_value_flower": 8,
        "speedup_vs_flower": round(first["flower_client_ms"] / first["client_ms"], 2),
        f"client_ms_n{last['n']}": last["vector_ms"],
        # 1 means linear in n.
        "client_growth_exponent": _growth(rows, "client_session_ms"),
        "server_growth_exponent": _growth(rows, "server_ms"),
        "by_n": rows,
    }


def _growth(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent e of time ~ n^e, least squares over all cohorts."""
    n, time_ = ([math.log(row[name]) for row in rows] for name in ("n", key))
    return round(float(np.polyfit(n, time_, 1)[0]), 3) if len(rows) > 1 else math.nan


class Parties:
    """A cohort of `n` companies with everything that outlives a session."""

    def __init__(self, n: int, values: int) -> None:
        names = tuple(f"company-{i:03d}" for i in range(n))
        identities = {name: Identity.generate() for name in names}
        self.roster = Roster({name: identity.public for name, identity in identities.items()})
        self.members = {name: Member(name, identity, self.roster) for name, identity in identities.items()}
        self.session_of_all = Session(
            run="bench", round=1, label="block-0", model_digest=bytes(32), settings_digest=bytes(32),
            cohort=names, threshold=lowest_threshold(n), length=values, bits=BITS,
        )  # fmt: skip
        self.channels = {name: ChannelKeys.generate() for name in names}
        self.signed: dict[str, ChannelKey] = {
            name: channel.signed(self.members[name], "bench", bytes(32))
            for name, channel in self.channels.items()
        }
        self.codec = FixedPoint(bound=1.0, parties=n, bits=BITS)

    def start(self, name: str) -> CompanySession:
        """A session begun by the first of a fresh copy of the channel keys, so that it may be begun again."""
        again = ChannelKeys.from_bytes(self.channels[name].to_bytes())
        return CompanySession.start(self.session_of_all, self.members[name], again, self.signed, 3)

    def send(
        self, company: CompanySession, adverts: Mapping[str, Advert], vector: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        company.check_adverts(adverts)
        return company.mask(self.codec.encode(vector), adverts)

    def session(self, vector: NDArray[np.float64]) -> dict[str, Any]:
        """One whole session: median milliseconds of a company, sum of the coordinator's."""
        clock, server = Clock(), Clock()
        aggregation = Aggregation(self.session_of_all, self.roster)
        companies: dict[str, CompanySession] = {}
        for name in self.members:
            companies[name] = clock.of("keys", name, self.start, name)
            server.of("all", name, aggregation.add_advert, name, companies[name].advert())
        adverts = server.of("all", "", aggregation.close_adverts)
        packed: dict[str, NDArray[np.uint8]] = {}
        for name, company in companies.items():
            mine = {peer: advert.for_recipient(name) for peer, advert in adverts.items()}
            packed[name] = clock.of("vector", name, self.send, company, mine, vector)
        # In a row: between two companies' work the coordinator would find its cache emptied, the more the larger n.
        for name, masked in packed.items():
            server.of("all", name, aggregation.add_masked, name, masked)
        survivors = aggregation.close_masked()
        for name, company in companies.items():
            confirmation = clock.of("answer", name, company.confirm, survivors)
            server.of("all", name, aggregation.add_confirmation, name, confirmation)
        proof = aggregation.close_confirmations()
        for name, company in companies.items():
            shares = clock.of("answer", name, company.unmask, proof)
            server.of("all", name, aggregation.add_shares, name, shares)
        total, _ = server.of("all", "", aggregation.open)
        error = np.abs(self.codec.decode_sum(total) - len(companies) * vector).max()
        assert error <= self.codec.max_error
        return {
            "client_session_ms": clock.median("keys", "vector", "answer"),
            "vector_ms": clock.median("vector"),
            "server_ms": server.total(),
            "bytes_per_value": round(masked.nbytes / len(vector), 4),
        }


class Clock:
    """Processor time by step and company."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str], float] = {}

    def of(self, step: str, who: str, job: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        started = time.process_time()
        result = job(*given, **named)
        self._spent[step, who] = self._spent.get((step, who), 0.0) + time.process_time() - started
        return result

    def median(self, *steps: str) -> float:
        names = {who for _, who in self._spent}
        sums = [sum(self._spent[step, who] for step in steps) for who in names]
        return round(1000 * statistics.median(sums), 2)

    def total(self) -> float:
        return round(1000 * sum(self._spent.values()), 2)


def beside_flower(parties: Parties, vector: NDArray[np.float64], repeats: int) -> dict[str, float]:
    """Milliseconds of one company's keys, shares, quantisation, masks and packing: ours and Flower's, in turns."""
    names = parties.session_of_all.cohort
    peers = {name: parties.start(name).advert().for_recipient(names[0]) for name in names[1:]}
    flower = FlowerClient(len(names))

    def ours() -> None:
        company = parties.start(names[0])
        parties.send(company, peers | {names[0]: company.advert()}, vector)

    jobs = {"ours": ours, "flower": lambda: flower.run(vector)}
    seconds = median_seconds(jobs, repeats, time.process_time)
    return {
        "client_ms": round(1000 * seconds["ours"], 2),
        "flower_client_ms": round(1000 * seconds["flower"], 2),
    }


class FlowerClient:
    """One client of Flower's SecAgg+ on the full graph, up to and including its masked vector."""

    def __init__(self, n: int) -> None:
        self.n, self.threshold = n, lowest_threshold(n)
        pairs = [(generate_key_pairs()[1], generate_key_pairs()[1]) for _ in range(n - 1)]
        self.peers = [(public_key_to_bytes(one), public_key_to_bytes(two)) for one, two in pairs]

    def run(self, vector: NDArray[np.float64]) -> list[bytes]:
        mask_key, _ = generate_key_pairs()
        share_key, _ = generate_key_pairs()
        seed = os.urandom(32)
        seeds = create_shares(seed, self.threshold, self.n)
        keys = create_shares(private_key_to_bytes(mask_key), self.threshold, self.n)
        for i, (_, peer) in enumerate(self.peers):
            secret = generate_shared_key(share_key, bytes_to_public_key(peer))
            encrypt(secret, share_keys_plaintext_concat(1, i + 2, seeds[i], keys[i]))
        quantised: list[NDArray[Any]] = list(
            quantize(parameters_multiply([vector], 1.0), _FLOWER_CLIP, _FLOWER_LEVELS)
        )
        masked = factor_combine(1, quantised)
        shapes = [array.shape for array in masked]
        masked = parameters_addition(masked, pseudo_rand_gen(seed, _FLOWER_MODULUS, shapes))
        for i, (peer, _) in enumerate(self.peers):
            secret = generate_shared_key(mask_key, bytes_to_public_key(peer))
            mask = pseudo_rand_gen(secret, _FLOWER_MODULUS, shapes)
            combine = parameters_addition if i % 2 else parameters_subtraction
            masked = combine(masked, mask)
        return [ndarray_to_bytes(array) for array in parameters_mod(masked, _FLOWER_MODULUS)]


def draw(rows: list[dict[str, Any]], values: int, path: Path) -> None:
    """Milliseconds over n, on logarithmic axes: a line of slope one is linear growth."""
    from matplotlib.figure import Figure

    series = {
        "company, whole session": "client_session_ms",
        "coordinator, whole session": "server_ms",
        "Flower's SecAgg+ client": "flower_client_ms",
    }
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    n = [row["n"] for row in rows]
    for label, key in series.items():
        ax.plot(n, [row[key] for row in rows], marker="o", label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(n, [str(count) for count in n])
    ax.minorticks_off()
    ax.set_xlabel("companies")
    ax.set_ylabel("processor time, ms")
    ax.set_title(f"Secure sum of {values:,} values")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    figure.savefig(path)
