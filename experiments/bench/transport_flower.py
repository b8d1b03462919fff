"""A SuperLink and SuperNodes on loopback, and one secure step through Flower's own messages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import RunError
from ...protocol.flower_parts import project_file
from .transport_apps import COMPANIES

_RUN_CONFIG = """
out = ""
run-dir = ""
values = 0
"""

_CONNECTION = """
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def flower_step(values: int, on_progress: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """Seconds by phase of one secure step of `values` values, five SuperNodes."""
    apps = "fedblocks.experiments.bench.transport_apps"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "seconds.json"
        project = flower_project(folder / "app", f"{apps}:coordinator", f"{apps}:party")
        nodes = [["flower-supernode", "--node-config", f"partition-id={i}"] for i in range(COMPANIES)]
        on_progress("Flower: a SuperLink and SuperNodes start, one step takes about a minute")
        printed = flower_run(project, nodes, f'out="{out}" values={values}', folder)
        if not out.is_file():
            raise RunError(f"the run through Flower left no result: {printed}")
        seconds: dict[str, float] = json.loads(out.read_text("utf-8"))
        return seconds


def flower_project(folder: Path, coordinator: str, companies: str) -> Path:
    """A new folder with the project of two Flower apps, given as `module:attribute`."""
    folder.mkdir()
    text = project_file(folder.name, coordinator, companies) + _RUN_CONFIG
    (folder / "pyproject.toml").write_text(text, "utf-8")
    return folder


def flower_run(
    project: Path, nodes: list[list[str]], config: str, folder: Path, seconds: float = 400.0
) -> str:
    """`flwr run` of a project on a SuperLink of its own, to its end; returns the last that it printed.

    `nodes`: the commands that start the SuperNodes; `config`: the run's. Flower's files and logs lie in `folder`.
    """
    home, link = folder / "flwr", free_port()
    home.mkdir()
    (home / "config.toml").write_text(_CONNECTION.format(port=link), "utf-8")
    env = flower_env(home)
    with superlink(link, nodes, env, folder):
        command = ["flwr", "run", str(project), "here", "--stream", "--run-config", config]
        done = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
    return done.stdout[-3000:] + done.stderr[-1000:]


def flower_env(home: Path) -> dict[str, str]:
    """An environment in which Flower keeps to `home`, and to this installation."""
    binaries = Path(sys.executable).parent
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }


@contextmanager
def superlink(port: int, nodes: list[list[str]], env: dict[str, str], folder: Path) -> Iterator[None]:
    """A SuperLink on `port` with its SuperNodes, started by `nodes`; all are stopped at the end. Logs: `folder`."""
    commands = [["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]]
    for node in nodes:
        own = str(free_port())
        commands.append([*node, "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", own])
    processes = []
    try:
        for i, command in enumerate(commands):
            with (folder / f"flower-{i}.log").open("wb") as file:
                processes.append(
                    subprocess.Popen(command, env=env, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
                )
            if i == 0:
                _wait_for(port)
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(port: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RunError(f"the SuperLink does not listen on port {port}")
