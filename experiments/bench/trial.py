"""From keys to a finished run of three companies, all as processes, as `fedblocks trial` starts them.

Beside the time: the processors' time, which other work on the machine changes little; the memory of an agent (the
process that waits, and its worker apart from it), looked at all through the run; and how long the command line takes
to start, each time beside the bare interpreter.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import RunError
from ..trial.processes import Processes
from .transport_flower import free_port

NAMES = ("acme", "bravo", "charlie")
_EVERY = 0.2
_COMMAND = "import sys; from fedblocks.cli.main import main; sys.argv = ['fedblocks', '--help']; main()"


def measure(
    rounds: int, repeats: int, *, on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Times in seconds, memory (resident set size) in MB, the largest that was seen of any agent."""
    with tempfile.TemporaryDirectory() as folder:
        before = _processor()
        seconds, agent, worker = _trial(Path(folder) / "trial", rounds)
        processor = _processor() - before
    on_progress(f"{rounds} rounds after {seconds:.1f} s")
    starts = [_start() for _ in range(repeats)]
    return {
        "companies": len(NAMES),
        "rounds": rounds,
        "seconds_to_finished_run": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "agent_mb": round(agent, 1),
        "agent_worker_mb": round(worker, 1),
        "help_seconds": statistics.median(command for command, _ in starts),
        "help_seconds_over_interpreter": statistics.median(command - bare for command, bare in starts),
    }


def _trial(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Seconds, and the largest memory of an agent and of a worker."""
    words: list[str | Path] = [
        "trial",
        folder,
        *NAMES,
        "--preset",
        "digits",
        "--set",
        f"training.rounds={rounds}",
    ]
    agents, workers, log = [0.0], [0.0], folder.with_name("log")
    started = time.monotonic()
    with Processes() as running:
        running.start("trial", [*words, "--yes", "--port", str(free_port())], log)
        while running.ended("trial") is None:
            for name in NAMES:
                with suppress(OSError, ValueError, KeyError):  # it has not begun, or has ended just now
                    pid = json.loads((folder / name / "agent.json").read_bytes())["pid"]
                    agents.append(_memory(pid))
                    workers += [_memory(child) for child in _children(pid)]
            time.sleep(_EVERY)
        seconds = time.monotonic() - started
        if running.ended("trial") != 0:
            raise RunError(f"the trial {running.how('trial')}")
    return seconds, max(agents), max(workers)


def _processor() -> float:
    """Seconds of all processes that were started from here and have ended, and of those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(pid: int) -> float:
    """Resident set size in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    # A process that has ended, and that nobody has waited for yet, has none.
    return int(next((line.split()[1] for line in lines if line.startswith("VmRSS")), "0")) / 1024


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _start() -> tuple[float, float]:
    """Seconds of `fedblocks --help` and of an interpreter that does nothing, one after the other."""
    found = []
    for code in (_COMMAND, "pass"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return found[0], found[1]
