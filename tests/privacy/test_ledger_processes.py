"""A killed process loses no acknowledged charge, and processes that charge at once are all counted."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedblocks.errors import BudgetExceeded
from fedblocks.privacy.composition import RENYI, RUNS, Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger import Charge, Ledger
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.ledger_room import remaining

EVENT = GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20, dimension=900)


def opened(path: Path, ceiling: float = 8.0, rule: str = RUNS) -> Ledger:
    return Ledger.open(path, "acme", epsilon_ceiling=ceiling, delta=1e-5, rule=rule)


def charge(ledger: Ledger, n: int, planned: int = 15) -> Charge:
    return ledger.charge(run="r", round=n, block="b0", release_id=f"id-{n}", terms=Terms(EVENT, planned))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# Imports once and no torch, then forks the processes that charge: a line "ledger count name name ..." starts one
# for each name. A release is charged, then made: the line in the name's own file.
CHARGERS = """
import os, sys
from pathlib import Path
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.ledger import Ledger
event = GaussianSteps(sampling_rate=0.001, noise_multiplier=20.0, steps=1, dimension=900)

def charge_until_killed(path, name, count):
    with open(f"{path}.{name}", "ab", buffering=0) as made:
        with Ledger.open(path, "acme", 8.0, 1e-5) as ledger:
            for n in range(count):
                ledger.charge(run=name, round=n, block="b", release_id=f"{name}-{n}", terms=Terms(event, 1000))
                made.write(b"%d\\n" % n)

assert "torch" not in sys.modules
for line in sys.stdin:
    path, count, *names = line.split()
    pids = []
    for name in names:
        pid = os.fork()
        if pid == 0:
            try:
                charge_until_killed(path, name, int(count))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    print(*pids, flush=True)
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
"""


class Chargers:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHARGERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, path: Path, count: int, *names: str) -> list[int]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path} {count} {' '.join(names)}\n")
        return self._numbers()

    def exit_codes(self) -> list[int]:
        return self._numbers()

    @staticmethod
    def made(path: Path, name: str) -> list[int]:
        file = Path(f"{path}.{name}")
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [int(line) for line in lines if line.endswith("\n")]

    def close(self) -> None:
        self._process.communicate()

    def _numbers(self) -> list[int]:
        assert self._process.stdout is not None
        return [int(word) for word in self._process.stdout.readline().split()]


@pytest.fixture
def chargers() -> Iterator[Chargers]:
    chargers = Chargers()
    yield chargers
    chargers.close()


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_process_has_charged_every_release_it_made(
    tmp_path: Path, chargers: Chargers, kills: int
) -> None:
    moments, a_ledger = random.Random(kills), 10
    midway = 0
    for k in range(kills):
        # A new ledger every ten kills, so that some die while it is being made and none grows slow.
        path, name = tmp_path / f"ledger-{k // a_ledger}.sqlite", f"p{k}"
        (pid,) = chargers.start(path, 100_000, name)
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert chargers.exit_codes() == [-signal.SIGKILL]
        made = chargers.made(path, name)
        midway += bool(made)
        if not path.exists():
            # Killed before there was a ledger: then nothing was made either.
            assert made == []
            continue
        charged = [row.round for row in read_ledger(path).rows if row.run == name]
        assert made == list(range(len(made)))
        # Charged before made: at most the release in hand was charged and not made.
        assert charged in (made, [*made, len(made)])
        if k % a_ledger == a_ledger - 1:
            with opened(path) as ledger:
                ledger.verify()
                charge(ledger, 0)
    assert midway >= kills // 4


def test_processes_charging_at_once_are_all_recorded(path: Path, chargers: Chargers) -> None:
    names, count = ["p0", "p1", "p2"], 10
    chargers.start(path, count, *names)
    assert chargers.exit_codes() == [0, 0, 0]
    with opened(path) as ledger:
        rows = ledger.rows()
        expected = [(name, n) for name in names for n in range(count)]
        assert sorted((row.run, row.round) for row in rows) == expected
        assert all(a.epsilon_after == b.epsilon_before for a, b in itertools.pairwise(rows))
        ledger.verify()


def test_reading_while_processes_charge_hinders_none(path: Path, chargers: Chargers) -> None:
    chargers.start(path, 15, "p0", "p1")
    seen, until = [0], time.monotonic() + 30
    while seen[-1] < 30 and time.monotonic() < until:
        if path.exists():
            seen.append(len(read_ledger(path).rows))
    assert chargers.exit_codes() == [0, 0]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1] == 30
    # A writer that closes while it is read leaves its log to the next one, which tidies up.
    with opened(path) as ledger:
        assert len(ledger.rows()) == 30
        ledger.verify()
    assert not Path(f"{path}-wal").exists()


def test_two_processes_share_one_ceiling(path: Path) -> None:
    with opened(path, 1.2, RENYI) as one, opened(path, 1.2, RENYI) as two:
        fit, taken = remaining(read_ledger(path), EVENT, 1.2), 0
        for n in range(fit + 3):
            try:
                charge((one, two)[n % 2], n, planned=1000)
                taken += 1
            except BudgetExceeded:
                pass
        assert taken == fit == len(two.rows())
