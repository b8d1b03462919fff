"""Each company's ledger: epsilon over the rounds, its ceiling, and its releases by block."""

from __future__ import annotations

from dataclasses import dataclass

from ...client.company import Company
from ...client.policy import load_policy
from ...privacy.accounting import epsilon, guarantee
from ...privacy.ledger_file import LedgerRow
from ...protocol.evaluation import evaluation_run
from ...server.run_folder import RunFolder
from ...settings import Plan


@dataclass(frozen=True)
class Spending:
    """One company's ledger. `spent` covers all its runs, `account` names the accountant; `curve` and `by_block` cover
    this run.

    `spent_company`: as `spent`, against a company that takes part and so knows its own share of the noise.
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
    trained: tuple[int, ...] = ()  # the round of each release that is a training's


def read_spending(run: RunFolder, plan: Plan) -> list[Spending]:
    """All ledgers in the run folder, which are those of simulated companies; none for a run without noise."""
    if not plan.private:
        return []
    return [_spending(Company(home, load_policy(home / "policy.toml")), plan) for home in run.homes()]


def _spending(company: Company, plan: Plan) -> Spending:
    rows: list[LedgerRow] = []
    found = guarantee([], company.policy.delta)
    # Opening would create a ledger; a report only reads.
    if (company.home / "ledger.sqlite").is_file():
        with company.ledger() as ledger:
            rows, found = ledger.rows(), ledger.spent()
    own = [row for row in rows if row.run in (plan.run, evaluation_run(plan.run))]
    delta = company.policy.delta
    blocks = sorted({row.block for row in own})
    start = [(0, own[0].epsilon_before if own else found.epsilon)]
    return Spending(
        company=company.name,
        ceiling=company.policy.epsilon_ceiling,
        delta=delta,
        spent=found.epsilon,
        spent_company=found.epsilon_against_company,
        releases=len(own),
        other_releases=len(rows) - len(own),
        account=f"{found.accountant}; composition: {found.composition}",
        curve=tuple(start + [(row.round, row.epsilon_after) for row in own]),
        by_block={block: _block(own, block, delta) for block in blocks},
        trained=tuple(row.round for row in own if row.run == plan.run),
    )


def _block(rows: list[LedgerRow], block: str, delta: float) -> tuple[int, float]:
    events = [row.event for row in rows if row.block == block]
    return len(events), epsilon(events, delta)
