"""The tutorial runs as it stands: its own blocks in order, each in a real shell of the party whose shell it names."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import fedblocks
from fedblocks.experiments.bench.transport_flower import free_port
from fedblocks.server.run_folder import RunFolder

ROOT = Path(fedblocks.__file__).parent
COMPANIES = ("acme", "bravo", "charlie")
LAST = "The same in one command"  # a command of its own, see tests/cli/test_trial.py
PREPARATION, EACH = "", "each company"
FINGERPRINT = r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}"


@dataclass(frozen=True)
class Block:
    """`shell`: the party's, or that of each company in turn; `second`: it stays, beside the party's first."""

    shell: str
    second: bool
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.splitlines() if line]


def blocks() -> list[Block]:
    """The tutorial's shell blocks, up to the last chapter."""
    tokens = MarkdownIt("commonmark").parse((ROOT / "docs/tutorial.md").read_text("utf-8"))
    found = []
    for token in takewhile(lambda token: token.content != LAST, tokens):
        if token.type == "fence" and token.info.split()[:1] == ["sh"]:
            shell, _, second = token.info.removeprefix("sh").strip().partition(", ")
            assert second in ("", "second shell")
            found.append(Block(shell, bool(second), token.content))
    assert tokens[-1].content != LAST
    return found


def test_every_block_says_whose_shell_it_is_for() -> None:
    """Would catch a block that the slow test below would not run as a reader does."""
    shells = {block.shell for block in blocks()}
    assert shells == {PREPARATION, EACH, "coordinator", "provisioner"}
    assert [block.shell for block in blocks()].count(PREPARATION) == 1
    stay = [block.commands for block in blocks() if block.second]
    assert all(len(commands) == 1 and commands[0].startswith("fedblocks ") for commands in stay)


def test_a_company_needs_at_most_ten_commands_to_its_first_run() -> None:
    """From its kit and before, until it has approved; whatever it types counts, copying too."""
    typed = [line for block in blocks() if block.shell == EACH for line in block.commands]
    approves = next(i for i, line in enumerate(typed) if line.startswith("fedblocks agent approve"))
    assert approves + 1 <= 10
    assert sum(line.startswith("fedblocks agent up") for line in typed[:approves]) == 1


@dataclass
class Shells:
    """The parties' shells below one folder, and what a reader has read in them so far."""

    folder: Path
    told: dict[str, str]
    staying: dict[str, tuple[subprocess.Popen[str], Path]] = field(default_factory=dict)

    def place(self, party: str) -> Path:
        return self.folder / "tutorial" / party if party else self.folder

    def text(self, block: Block, party: str) -> str:
        """The block as the reader types it: other company's name, a free port, and what is in capitals."""
        text = re.sub(r"\bacme\b", party, block.text) if block.shell == EACH else block.text
        for word, value in self.told.items():
            text = text.replace(word, value)
        assert not re.search(r"\b(RUN|FINGERPRINT)\b", text), f"nobody has told yet: {text}"
        return text

    def start(self, block: Block, party: str, log: Path) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w") as out:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.text(block, party)],
                cwd=self.place(party), stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True,
                env=os.environ | {"PATH": path, "COLUMNS": "200"}, start_new_session=True,
            )  # fmt: skip

    def run(self, number: int, block: Block) -> dict[str, str]:
        """What each party's shell says; of a block that stays, its first words."""
        parties = COMPANIES if block.shell == EACH else (block.shell,)
        logs = {party: self.folder / f"{number}-{party or 'preparation'}.log" for party in parties}
        started = {party: self.start(block, party, log) for party, log in logs.items()}
        if block.second:
            self.staying |= {party: (process, logs[party]) for party, process in started.items()}
            for party, process in started.items():
                until_it_speaks(process, logs[party])
        else:
            try:
                for party, process in started.items():
                    code = process.wait(400)
                    assert code == 0, f"{party}: {self.text(block, party)}\n{logs[party].read_text()}"
            finally:
                end(*started.values())
        return {party: log.read_text() for party, log in logs.items()}

    def close(self) -> None:
        end(*(process for process, _ in self.staying.values()))


def until_it_speaks(process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not log.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(*processes: subprocess.Popen[str]) -> None:
    """Whole sessions, so that nothing a shell has started stays."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Shells]:
    made = Shells(tmp_path, {"9443": str(free_port())})
    yield made
    made.close()


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(shells: Shells) -> None:
    """Real processes throughout. Would catch a command that has changed, an order that does not work, and a run that
    needs more than the page says."""
    said: dict[str, dict[str, str]] = {}
    for number, block in enumerate(blocks()):
        found = shells.run(number, block)
        for line in block.commands:
            said[" ".join(line.split()[:3])] = found
        if "fedblocks provision" in block.text:
            spoken = re.search(rf"first time: ({FINGERPRINT})", found["provisioner"])
            assert spoken is not None
            shells.told["FINGERPRINT"] = spoken[1]
        if "coordinator plan" in block.text:
            planned = re.search(r"Planned \S+/runs/(\S+) for acme, bravo, charlie", found["coordinator"])
            assert planned is not None
            shells.told["RUN"] = planned[1]
    for company, text in said["fedblocks company request"].items():  # the phone call
        own = re.search(rf"^({FINGERPRINT})$", text, re.MULTILINE)
        assert own is not None
        assert f"{company}: {own[1]}" in said["fedblocks provision federation.toml"]["provisioner"]
    for company, text in said["fedblocks agent pending"].items():
        assert f"Run '{shells.told['RUN']}'" in text
        assert f"adding or removing one example of {company}" in text
    coordinator, log = shells.staying["coordinator"]
    assert coordinator.wait(60) == 0, log.read_text()
    run = RunFolder.existing(shells.place("coordinator") / "runs" / shells.told["RUN"])
    assert [row["status"] for row in run.metrics()[1:]] == ["done"] * run.plan().training.rounds
    assert all("verified" in text for text in said["fedblocks agent log"].values())
    for company in COMPANIES:
        with (shells.place(company) / "answers.csv").open() as file:
            answers = list(csv.DictReader(file))
        assert len(answers) in (33, 34)
        assert {row["label"] for row in answers} <= set("0123456789")
        assert shells.told["RUN"] in said["fedblocks company models"][company]
        agent, log = shells.staying[company]
        os.killpg(agent.pid, signal.SIGINT)
        assert agent.wait(60) == 0, log.read_text()
        assert company in (run.path / "report.html").read_text()
