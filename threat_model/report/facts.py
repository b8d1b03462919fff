"""The report's data on the rounds of a run, read from the run's files only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...blocks import build_model, merge, metric_of
from ...blocks.examples import Examples
from ...errors import FedblocksError
from ...server.checkpoint import Checkpoint
from ...server.own_account import OwnAccount, own_accounts
from ...server.reasons import evaluation_in_words
from ...server.run_folder import RunFolder
from ...settings import Plan, RunSettings, SimulationSettings, read_simulation, without_protocol
from .measures import Measure
from .parted import step_half_widths
from .spending import Spending, read_spending

PHASES = {
    "keys": "key exchange",
    "train": "training",
    "confirm": "confirmation",
    "unmask": "unmasking",
}


@dataclass(frozen=True)
class Point:
    """Quality after a round: for each set one value after each block; the last is the model's.

    `judged`: on what the run is judged by; `public`: on public data, where these are others.
    """

    round: int
    judged: tuple[float, ...]
    public: tuple[float, ...]


@dataclass(frozen=True)
class Absence:
    """A company that dropped out; `counted`: its update was already in the sum."""

    round: int
    company: str
    phase: str
    code: str
    counted: bool


@dataclass(frozen=True)
class Utility:
    """Quality over the rounds, in the family's metric.

    `private`: judged by examples that simulated companies held out; a real run has public ones alone. `halves`: of
    the intervals around the last round's steps from block to block (see `parted`); of shares they follow from the
    numbers.
    """

    private: bool
    measure: Measure
    points: tuple[Point, ...]
    reference: tuple[Point, ...]
    non_private: float | None
    judged_examples: int
    public_examples: int
    halves: tuple[float, ...] = ()

    @property
    def data(self) -> str:
        """What it was judged by, in words."""
        return "held-out private data" if self.private else "public data"

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def last(self) -> Point:
        return self.points[-1]

    def losing_blocks(self) -> list[tuple[int, float]]:
        """(block, quality lost) for each block after which the chain is worse than before it by more than chance."""
        after, m = self.last.judged, self.measure
        return [
            (b, m.gain(after[b], after[b - 1]))
            for b in range(1, len(after))
            if m.worsens(self.step_interval(b))
        ]

    def step_interval(self, block: int) -> tuple[float, float] | None:
        """Of what this block, not the first, changes in the last round, at 95%; none where that is not known."""
        after = self.last.judged
        half = self.halves[block - 1] if self.halves else None
        return self.measure.change_interval(after[block - 1], after[block], self.judged_examples, half)

    @property
    def best_block(self) -> int:
        """The block after which the chain has its best quality in the last round."""
        after = self.last.judged
        return max(range(len(after)), key=lambda b: self.measure.gain(0.0, after[b]))


@dataclass(frozen=True)
class Facts:
    """All data of a report except audit and diagnoses."""

    run: str
    folder: str
    settings: RunSettings
    simulation: SimulationSettings | None
    plan: Plan
    measure: Measure
    rounds_done: int
    companies: tuple[str, ...]
    utility: Utility | None
    spending: tuple[Spending, ...]
    accounts: tuple[OwnAccount, ...]  # of a real run, the coordinator's own
    absences: tuple[Absence, ...]
    aborted: dict[int, str]
    flagged: tuple[dict[str, Any], ...]  # a round's `GroupEffect`s where the group is flagged, with the round
    guarded: tuple[dict[str, Any], ...]  # what the guard saw past its limit, with the round
    unused_charges: int
    seconds: float | None
    unprotected: bool = False  # a study of utility, without the protocol: nobody's ledger was charged
    evaluations: tuple[tuple[int, str], ...] = ()  # on the companies' held-out examples: round, and in words

    @property
    def private(self) -> bool:
        return self.plan.private and not self.unprotected

    @property
    def real(self) -> bool:
        """Whether the companies are real ones, whose data and ledgers are elsewhere."""
        return self.simulation is None

    @property
    def took_part(self) -> tuple[str, ...]:
        """Of a roster, who may have sat out the run, only those who were asked."""
        out = {each.company for each in self.accounts if not each.summed and not each.absent}
        return tuple(name for name in self.companies if name not in out)

    @property
    def finished(self) -> bool:
        return self.rounds_done >= self.plan.training.rounds

    @property
    def one_block_a_round(self) -> bool:
        return self.plan.training.assignment == "sequential" or self.plan.model.blocks == 1

    def absence_table(self) -> list[tuple[str, str, str, bool, int, str]]:
        """(company, phase, code, counted, how often, rounds), most frequent first."""
        kinds = Counter((a.company, a.phase, a.code, a.counted) for a in self.absences)
        return [
            (*kind, count, _ranges([a.round for a in self.absences if _kind(a) == kind]))
            for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        ]


def read_facts(run: RunFolder) -> Facts:
    """Read a run's files, as far as they exist: the run may be unfinished, its companies elsewhere."""
    settings, plan, rows, simulated = run.settings(), run.plan(), run.metrics(), run.simulated()
    unprotected = without_protocol(run.path)
    spending = read_spending(run, plan) if simulated and not unprotected else []
    accounts = [] if simulated else own_accounts(run)
    rounds = [row for row in rows if row["round"] > 0]
    seen = {name for row in rounds for name in (*row["survivors"], *row["absent"])}
    result = (run.read_json("result.json") if simulated else None) or {}
    seconds = result.get("seconds")
    measure = Measure(metric_of(plan.model))
    return Facts(
        run=plan.run,
        folder=str(run.path),
        settings=settings,
        simulation=read_simulation(run.path) if simulated else None,
        plan=plan,
        measure=measure,
        rounds_done=rounds[-1]["round"] if rounds else 0,
        companies=tuple(
            sorted(seen | {s.company for s in spending} | {a.company for a in accounts}, key=_natural)
        ),
        utility=_utility(run, measure, rows, result, simulated),
        spending=tuple(sorted(spending, key=lambda s: _natural(s.company))),
        accounts=tuple(sorted(accounts, key=lambda each: _natural(each.company))),
        absences=tuple(_absence(row, name) for row in rounds for name in sorted(row["absent"])),
        aborted={row["round"]: row["status"] for row in rounds if row["status"] != "done"},
        flagged=tuple(
            {"round": row["round"], **effect}
            for row in rounds
            for effect in row.get("influence", ())
            if effect["flagged"]
        ),
        guarded=tuple(
            {"round": row["round"], **row["guard"]}
            for row in rounds
            if row.get("guard", {}).get("flagged", False)
        ),
        unused_charges=_unused(spending, rounds),
        seconds=seconds if isinstance(seconds, int | float) else None,
        unprotected=unprotected,
        evaluations=tuple(
            (row["round"], evaluation_in_words(row["evaluation"])) for row in rounds if "evaluation" in row
        ),
    )


def _utility(
    run: RunFolder, measure: Measure, rows: list[dict[str, Any]], result: dict[str, Any], simulated: bool
) -> Utility | None:
    points = _points(rows) if simulated else _public_points(rows)
    if not points:
        return None
    return Utility(
        measure=measure,
        points=points,
        private=simulated,
        reference=_points(RunFolder(run.path / "reference").metrics()) if simulated else (),
        non_private=result.get(f"{measure.metric.name}_non_private"),
        judged_examples=_examples(run, "heldout" if simulated else "public"),
        public_examples=_examples(run, "public"),
        halves=_halves(run, measure, points[-1], "heldout" if simulated else "public"),
    )


def _halves(run: RunFolder, measure: Measure, last: Point, data: str) -> tuple[float, ...]:
    """None where the metric needs no examples for that, or is of a whole set of samples, or files are missing."""
    plan = run.plan()
    if measure.is_share or (measure.metric.unit == "number" and plan.model.kind.input_classes is not None):
        return ()
    try:
        model = build_model(plan.model, plan.noise)
        saved = Checkpoint.load(run.checkpoints, last.round).model
        merge(model, saved.shared, *saved.blocks)
        judged = Examples.load(run.evaluation / f"{data}.npz").check(data, plan.model.kind)
        return step_half_widths(model.eval(), judged, run.settings().seed)
    except (FedblocksError, OSError):
        return ()


def _points(rows: list[dict[str, Any]]) -> tuple[Point, ...]:
    return tuple(
        Point(row["round"], tuple(row["quality"]["heldout"]), tuple(row["quality"].get("public", ())))
        for row in rows
        if "heldout" in row.get("quality", {})
    )


def _public_points(rows: list[dict[str, Any]]) -> tuple[Point, ...]:
    """Of a real run: whatever else its folder was evaluated on, no company has."""
    return tuple(
        Point(row["round"], tuple(row["quality"]["public"]), ())
        for row in rows
        if "public" in row.get("quality", {})
    )


def _examples(run: RunFolder, name: str) -> int:
    path = run.evaluation / f"{name}.npz"
    return len(Examples.load(path)) if path.is_file() else 0


def _absence(row: dict[str, Any], company: str) -> Absence:
    phase, code = row["absent"][company]
    word = phase.rpartition(".")[2]
    named = PHASES.get({"block": "train"}.get(word, word), phase)
    return Absence(row["round"], company, named, code, company in row["survivors"])


def _unused(spending: list[Spending], rounds: list[dict[str, Any]]) -> int:
    """The number of releases that were charged and trained, but are in no sum."""
    summed = {row["round"]: set(row["survivors"]) for row in rounds}
    return sum(
        1 for s in spending for round_ in s.trained if s.company not in summed.get(round_, {s.company})
    )


def _kind(a: Absence) -> tuple[str, str, str, bool]:
    return a.company, a.phase, a.code, a.counted


def _natural(name: str) -> tuple[str, int, str]:
    """company-2 before company-10."""
    head = name.rstrip("0123456789")
    tail = name[len(head) :]
    return head, int(tail) if tail else -1, name


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] as 3–5, 9."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)
