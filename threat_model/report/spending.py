"""Each company's ledger: epsilon over the rounds, ceiling, releases by block, and a second accountant's view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...blocks.examples import Examples
from ...client.policy import load_policy
from ...client.units import units
from ...errors import LedgerError
from ...privacy.accounting import epsilon
from ...privacy.events import Event
from ...privacy.ledger_file import LedgerCopy, LedgerRow, read_ledger
from ...privacy.verification import verify_rows
from ...protocol.evaluation import evaluation_run
from ...server.run_folder import RunFolder
from ...settings import Plan

LEDGER = "ledger.sqlite"


@dataclass(frozen=True)
class Second:
    """What a second accountant, which shares no code with the first, says of a ledger's last row.

    `lower`, `upper`: its bounds, none where it has none from that side; `wrong`: what disagrees, empty where nothing.
    """

    lower: float | None
    upper: float | None
    says: str
    wrong: str = ""

    @property
    def agrees(self) -> bool:
        return not self.wrong


@dataclass(frozen=True)
class Spending:
    """One company's ledger. `spent` covers all its runs, `account` names the accountant; `curve` and `by_block` cover
    this run.

    `spent_company`: as `spent`, against a company that takes part and so knows its own share of the noise. `events`:
    of this run's releases. `planned`: the run as the ledger is pinned to it, as one event; none where it is not.
    `head`: the hash of the ledger's last row. `examples`: the company's, or its groups where these are the unit, as a
    simulation alone can tell.
    """

    company: str
    ceiling: float
    delta: float
    spent: float
    spent_company: float
    releases: int
    other_releases: int
    account: str
    curve: tuple[tuple[int, float], ...]
    by_block: dict[str, tuple[int, float]]
    against: str
    adjacency: str
    events: tuple[Event, ...]
    planned: Event | None
    head: str
    examples: int | None
    second: Second | None
    trained: tuple[int, ...] = ()  # the round of each release that is a training's

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for companies whose figures are all the same."""
        return (
            self.ceiling,
            self.delta,
            self.spent,
            self.spent_company,
            self.curve,
            tuple(self.by_block.items()),
        )


def read_spending(run: RunFolder, plan: Plan) -> list[Spending]:
    """All ledgers in the run folder, which are those of simulated companies; none for a run without noise."""
    if not plan.private:
        return []
    seconds: dict[tuple[object, ...], Second] = {}
    return [_spending(home, plan, seconds) for home in run.homes()]


def _spending(home: Path, plan: Plan, seconds: dict[tuple[object, ...], Second]) -> Spending:
    policy = load_policy(home / "policy.toml")
    # Opening for writing would create a ledger; a report only reads.
    copy = read_ledger(home / LEDGER) if (home / LEDGER).is_file() else None
    rows: Sequence[LedgerRow] = copy.rows if copy else ()
    own = [row for row in rows if row.run in (plan.run, evaluation_run(plan.run))]
    first = own[0] if own else None
    training = [row for row in own if row.run == plan.run]
    found = copy.spent if copy else None
    before = first.epsilon_before if first else found.epsilon if found else 0.0
    return Spending(
        company=policy.company,
        ceiling=policy.epsilon_ceiling,
        delta=policy.delta,
        spent=found.epsilon if found else 0.0,
        spent_company=found.epsilon_against_company if found else 0.0,
        releases=len(own),
        other_releases=len(rows) - len(own),
        account=f"{found.accountant}; composition: {found.composition}" if found else "nothing was charged",
        curve=((0, before), *((row.round, row.epsilon_after) for row in own)),
        by_block={block: _block(own, block, policy.delta) for block in sorted({row.block for row in own})},
        against=found.against if found else "",
        adjacency=found.adjacency if found else "",
        events=tuple(row.event for row in own),
        planned=_whole(training),
        head=copy.head if copy else "",
        examples=_examples(home / "data.npz", plan),
        second=_second(copy, seconds) if copy and rows else None,
        trained=tuple(row.round for row in training),
    )


def _whole(training: Sequence[LedgerRow]) -> Event | None:
    """The run as the ledger is pinned to it."""
    return training[0].event.times(training[0].planned) if training and training[0].planned else None


def _examples(path: Path, plan: Plan) -> int | None:
    return units(plan, Examples.load(path)) if path.is_file() else None


def _second(copy: LedgerCopy, seconds: dict[tuple[object, ...], Second]) -> Second:
    """Recomputed on the spot; once for ledgers whose rows are the same but for the company's name."""
    header = copy.header
    rows = tuple((r.run, r.event, r.planned, r.epsilon_before, r.epsilon_after) for r in copy.rows)
    key = (header.composition, header.delta, header.order, header.version, rows)
    if key not in seconds:
        try:
            last = verify_rows(copy.path, header, copy.rows).checks[-1]
            seconds[key] = Second(last.lower, last.upper, last.says)
        except LedgerError as error:
            seconds[key] = Second(None, None, "", wrong=str(error))
    return seconds[key]


def _block(rows: list[LedgerRow], block: str, delta: float) -> tuple[int, float]:
    events = [row.event for row in rows if row.block == block]
    return len(events), epsilon(events, delta)
