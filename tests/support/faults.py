"""What a fault may lead to: a test's `fault` marker says it, and the test holds the run to it.

    @pytest.mark.fault("company frozen (SIGSTOP)", ends="finished", says="without company-1", in_vain=0)
    def test_...(fault: Fault, ...) -> None:
        ...
        fault.hold(made, serve, rounds=20)

docs/operations.md has a row for each (`support.fault_table`), so what stands there is what is checked here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedblocks.client.company import Company
from fedblocks.client.decisions import verify
from fedblocks.client.policy import load_policy
from fedblocks.server.run_folder import RunFolder
from support.fault_table import ENDS, Row
from support.processes import Command, Federation

# A traceback, or the name of an exception: what one side's log must not have of the other's.
_EXCEPTION = re.compile(r"Traceback|File \"|\b[A-Z]\w+(?:Error|Exception|Exceeded|Refusal)\b|\[Errno")
_NUMBERED = re.compile(r"\bnode \d", re.IGNORECASE)


@dataclass
class Fault:
    """What the marker of a test promises; `hold` checks it."""

    row: Row
    held: bool = field(default=False, init=False)

    def hold(
        self,
        made: Federation,
        serve: Command,
        *,
        rounds: int,
        faults: int = 1,
        without: Collection[str] = (),
        agents: Sequence[Command] = (),
        stopped: Command | None = None,
    ) -> None:
        """The run has ended as promised: `serve` is the process that went on with it to its end, `rounds` how many
        it was to have, `faults` how often the fault happened, `without` the companies that were lost, `agents` those
        that were there at the end, `stopped` the process that said why the run was stopped, if it was."""
        self.held = True
        end = ENDS[self.row.ends]
        assert serve.end(600) == end.exit_code, serve.said[-2000:]
        assert end.stopped == (None if stopped is None else stopped.end()), stopped and stopped.said
        done = [row["round"] for row in made.run.metrics() if row.get("status", "done") == "done"]
        if end.exit_code == 0:
            assert done == list(range(rounds + 1))
            assert json.loads(serve.out.read_text())["rounds_done"] == rounds
        else:
            assert len(done) - 1 < rounds
        check_books(made.run, [h for h in made.homes if h.name not in without], self.row.in_vain * faults)
        for agent in agents:
            if end.exit_code == 0 or self.row.ends == "lost":
                assert (agent.end(), json.loads(agent.out.read_text())["ended"]) == (0, "done")
            else:
                assert agent.running, agent.said
        check_texts(made)
        self.say((stopped or serve).said)

    def books(self, run: RunFolder, homes: Collection[Path], *, rounds: int, faults: int = 1) -> None:
        """The same of a run whose processes are others: every round done, and no company charged for more."""
        self.held = True
        assert ENDS[self.row.ends].exit_code == 0
        assert [row["status"] for row in run.metrics()[1:]] == ["done"] * rounds
        check_books(run, homes, self.row.in_vain * faults)

    def say(self, said: str) -> None:
        """The row's message was said, word for word."""
        assert self.row.says in one_line(said), said[-2000:]

    def refuse(self, made: Federation, *refused: Command) -> None:
        """Every one of these ended with one line and an exit code that says so, and nothing was charged for it."""
        self.held = True
        for command in refused:
            assert command.end() in (2, 3), command.said
            self.say(command.said)
            assert sum("error:" in line or "stopped:" in line for line in command.said.splitlines()) == 1
        check_books(made.run, made.homes, self.row.in_vain)
        check_texts(made)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """The fault of this test's marker. A test that never holds a run to it fails."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "a test with a fault has a marker that says which"
    found = Fault(Row(request.function.__name__, *marker.args, **marker.kwargs))
    yield found
    assert found.held, "nothing was checked"


def check_books(run: RunFolder, homes: Collection[Path], in_vain: int) -> None:
    """Every sum that was opened is in the ledger of every company whose update it holds, at most `in_vain` releases
    beside them, and ledgers and records are whole."""
    sums = Counter[tuple[str, int, int]]()
    for row in run.metrics()[1:]:
        for task in row["tasks"]:
            for name in task["survivors"]:
                sums[name, task["round"], task["block"]] += 1
    for home in homes:
        company = Company(home, load_policy(home / "policy.toml"))
        with company.ledger() as ledger:
            ledger.verify()
            rows = [row for row in ledger.rows() if row.run == run.plan().run]
        verify(home)
        charged = {(home.name, row.round, int(row.block.removeprefix("block-"))) for row in rows}
        opened = {each for each in sums if each[0] == home.name}
        assert opened <= charged, f"{home.name} was not charged for {sorted(opened - charged)}"
        assert len(rows) - len(opened) <= in_vain, f"{home.name} paid {len(rows) - len(opened)} in vain"


def check_texts(made: Federation) -> None:
    """No side's output has a traceback, what one side knows stays there, and everybody is called by name."""
    names = [*(str(home) for home in made.homes), "policy.toml", "ledger.sqlite", "data.npz"]
    for command in made.started:
        said = command.said + command.out.read_text()
        assert _EXCEPTION.search(said) is None, said[-3000:]
        assert _NUMBERED.search(said) is None, said[-3000:]
        if command.coordinates:
            assert not [name for name in names if name in said], said[-3000:]
        else:
            assert str(made.plane) not in said, said[-3000:]
    for home in made.homes:
        log = home / "company.log"
        assert not log.exists() or str(made.plane) not in log.read_text()
    status = made.run.read_json("status.json") or {}
    assert _EXCEPTION.search(json.dumps(status)) is None, status


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def told(home: Path) -> list[dict[str, Any]]:
    """The lines of a company's record of decisions."""
    return [json.loads(line) for line in (home / "decisions.jsonl").read_text().splitlines()]
