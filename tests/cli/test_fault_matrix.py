"""Every command under every fault that people meet: one line that names what is wrong, and nothing lost.

A fault that a command has nothing to do with must leave it alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import Done, Machine, run_command

from fedblocks.experiments.interface import simulate

SMALL = (
    "model.hidden_size=16", "model.layers=2", "model.blocks=2", "model.heads=2", "model.patch_size=4",
    "pretraining.steps=2", "training.rounds=2", "training.sampling_rate=0.5", "training.expected_batch_size=20",
    "companies.count=3", "data.test_examples=20", "workers=1", 'data.private.source="data/images.npz"',
)  # fmt: skip
SETS = [word for change in SMALL for word in ("--set", change)]

# What stands in the folder where a command is run: a finished run, data, and a company's home.
RUN, DATA, HOME = Path("runs/done"), Path("data"), Path("runs/done/companies/company-0")
COMMANDS: dict[str, list[str]] = {
    "presets": ["presets", "--json"],
    "account": ["account", "digits", *SETS, "--spent", str(RUN), "--json"],
    "prepare": ["prepare", "digits", *SETS, "--json"],
    "pretrain": ["pretrain", "digits", *SETS, "--folder", "model", "--json"],
    "simulate": ["simulate", "digits", *SETS, "--json"],
    "resume": ["simulate", "--resume", str(RUN), "--json"],
    "audit": ["audit", str(RUN), "--minutes", "0.05", "--block", "0", "--json"],
    "report": ["report", str(RUN), "--json"],
    "model list": ["model", "list", "runs", "--json"],
    "model diff": ["model", "diff", str(RUN), "0", "2", "--json"],
    "model export": ["model", "export", str(RUN), "--to", "exported", "--json"],
    "predict": ["predict", str(RUN), "--input", "data/images.npz", "--to", "answers.csv", "--json"],
    "ledger show": ["ledger", "show", str(RUN), "--json"],
    "ledger verify": ["ledger", "verify", str(RUN), "--json"],
    "ledger export": ["ledger", "export", str(HOME), "ledger.csv", "--json"],
    "ledger accept": ["ledger", "accept", str(HOME), "--json"],
    "ledger create": ["ledger", "create", str(HOME), "--json"],
    "identity": ["identity", str(HOME), "--json"],
    "transport certificate": ["transport", "certificate", "keys", "--company", "acme", "--json"],
    "transport agent": ["transport", "agent", str(HOME), "--json"],
    "transport serve": ["transport", "serve", str(RUN), "keys", "--json"],
    "data inspect": ["data", "inspect", "data/table.csv", "--write", "contract.toml", "--json"],
}


ORDERLY = Machine()


@dataclass(frozen=True)
class Fault:
    """`breaks` is done to the folder before the command; `add` are words that the command gets besides."""

    breaks: Callable[[Path], object] = lambda place: None
    machine: Machine = ORDERLY
    add: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # where `add` is a setting that other commands do not take


def emptied(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(b"")


def torn(name: str) -> Callable[[Path], object]:
    """The first half of a file, as after a crash or a full device."""

    def tear(place: Path) -> None:
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[: len(whole) // 2])

    return tear


def noise(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(bytes(range(256)) * 8)


def removed(name: str) -> Callable[[Path], object]:
    def remove(place: Path) -> None:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def a_folder(name: str) -> Callable[[Path], object]:
    """A folder where a file is expected."""

    def put(place: Path) -> None:
        path = place / name
        if path.exists():
            path.unlink()
        path.mkdir()

    return put


def strangers(place: Path) -> None:
    """What file managers and editors leave behind."""
    for folder in ("runs", RUN, RUN / "companies", RUN / "checkpoints", RUN / "evaluation", HOME, DATA):
        (place / folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (place / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (place / folder / "notes~").write_text("mine")


def unwritable(place: Path) -> None:
    for folder in (Path(), Path("runs"), RUN, HOME, RUN / "checkpoints"):
        (place / folder).chmod(0o555)


def unreadable(place: Path) -> None:
    for file in (place / "data").iterdir():
        file.chmod(0)
    for name in ("settings.toml", "plan.json", "companies/company-0/policy.toml"):
        (place / RUN / name).chmod(0)


def not_utf8(place: Path) -> None:
    os.mkdir(os.fsencode(place) + b"/runs/caf\xe9")
    os.rename(place / RUN, os.fsencode(place) + b"/runs/caf\xe9/done")
    os.symlink(b"caf\xe9/done", os.fsencode(place) + b"/runs/done")


TAKE_SETTINGS = ("account", "prepare", "pretrain", "simulate")
LAST = str(RUN / "checkpoints/round-0002/block-1.safetensors")
FAULTS: dict[str, Fault] = {
    "none": Fault(),
    "no run": Fault(removed(str(RUN))),
    "a file where runs lie": Fault(lambda place: (shutil.rmtree(place / "runs"), (place / "runs").touch())),
    "settings empty": Fault(emptied(str(RUN / "settings.toml"))),
    "settings torn": Fault(torn(str(RUN / "settings.toml"))),
    "plan empty": Fault(emptied(str(RUN / "plan.json"))),
    "plan torn": Fault(torn(str(RUN / "plan.json"))),
    "plan is noise": Fault(noise(str(RUN / "plan.json"))),
    "result torn": Fault(torn(str(RUN / "result.json"))),
    "result of other types": Fault(
        lambda place: (place / RUN / "result.json").write_text('{"seconds": "long", "epsilon": []}')
    ),
    "audit torn": Fault(lambda place: (place / RUN / "audit.json").write_text('{"views": [')),
    "audit is a folder": Fault(a_folder(str(RUN / "audit.json"))),
    "report is a folder": Fault(a_folder(str(RUN / "report.html"))),
    "checkpoint torn": Fault(torn(LAST)),
    "checkpoint empty": Fault(emptied(LAST)),
    "checkpoint lacks its last block": Fault(removed(LAST)),
    "no checkpoints": Fault(removed(str(RUN / "checkpoints"))),
    "metrics torn": Fault(torn(str(RUN / "metrics.jsonl"))),
    "metrics are noise": Fault(noise(str(RUN / "metrics.jsonl"))),
    "evaluation torn": Fault(torn(str(RUN / "evaluation/public.npz"))),
    "evaluation empty": Fault(emptied(str(RUN / "evaluation/heldout.npz"))),
    "no evaluation": Fault(removed(str(RUN / "evaluation"))),
    "roster torn": Fault(torn(str(RUN / "roster.toml"))),
    "a company's data torn": Fault(torn(str(HOME / "data.npz"))),
    "a company's data gone": Fault(removed(str(HOME / "data.npz"))),
    "a company's policy torn": Fault(torn(str(HOME / "policy.toml"))),
    "a company's ledger empty": Fault(emptied(str(HOME / "ledger.sqlite"))),
    "a company's ledger is noise": Fault(noise(str(HOME / "ledger.sqlite"))),
    "a company's ledger gone": Fault(removed(str(HOME / "ledger.sqlite"))),
    "a company's key torn": Fault(torn(str(HOME / "identity.key"))),
    "no companies": Fault(removed(str(RUN / "companies"))),
    "private data torn": Fault(torn("data/images.npz")),
    "table torn": Fault(torn("data/table.csv")),
    "table empty": Fault(emptied("data/table.csv")),
    "strangers": Fault(strangers),
    "no permission to write": Fault(unwritable, Machine(ordinary=True)),
    "no permission to read": Fault(unreadable, Machine(ordinary=True)),
    "device full": Fault(machine=Machine(largest_file=3000)),
    "device full at once": Fault(machine=Machine(largest_file=0)),
    "an ASCII terminal": Fault(machine=Machine(environment=(("LC_ALL", "C"), ("PYTHONIOENCODING", "ascii")))),
    "a name that is not UTF-8": Fault(not_utf8),
    "no such device": Fault(add=("--set", "device=quantum"), only=TAKE_SETTINGS),
    "impossible momentum": Fault(add=("--set", "training.server_betas=[1.5,0.9]"), only=TAKE_SETTINGS),
    "no such data": Fault(add=("--set", "data.private.source=nowhere.npz"), only=TAKE_SETTINGS),
    "a model beyond the memory": Fault(
        machine=Machine(memory=12 << 30), add=("--set", "model.hidden_size=8192", "--set", "model.layers=256"),
        only=TAKE_SETTINGS,
    ),
}  # fmt: skip
KEPT = (
    "result.json",
    "audit.json",
    "report.html",
    "plan.json",
    "settings.toml",
    "checkpoints",
    "contract.toml",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder as after some work: a finished run, data."""
    import numpy as np

    place = tmp_path_factory.mktemp("template")
    (place / DATA).mkdir()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 120)
    np.savez(place / DATA / "images.npz", images=rng.random((120, 8, 8)), labels=labels)
    rows = "\n".join(f"{i},{i % 7}.5,{'yes' if i % 3 else 'no'}" for i in range(40))
    (place / DATA / "table.csv").write_text("id,size,bought\n" + rows + "\n")
    changes = dict(change.split("=", 1) for change in SMALL if not change.startswith("data.private"))
    values = {key: int(value) if value.isdigit() else float(value) for key, value in changes.items()}
    run = simulate(
        "digits", values | {"data.private.source": str(place / DATA / "images.npz")}, runs_dir=place
    )
    (place / "runs").mkdir()
    run.path.rename(place / RUN)
    return place


def fingerprint(place: Path) -> dict[str, str]:
    """Hashes of what a failed command must not have touched."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file() and any(part in KEPT for part in path.relative_to(place).parts)
    }


def tried(command: str, fault: Fault, template: Path, folder: Path) -> tuple[Done, bool]:
    """What came of it, and whether what stood there is as it was."""
    place = folder / "place"
    shutil.copytree(template, place)
    fault.breaks(place)
    before = fingerprint(place)
    done = run_command([*COMMANDS[command], *fault.add], place, fault.machine)
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return done, before.items() <= fingerprint(place).items()


def check(command: str, name: str, template: Path, folder: Path) -> str | None:
    """None, or what is wrong with how the command ended."""
    done, kept = tried(command, FAULTS[name], template, folder)
    said = f"exit {done.exit_code}\n{done.stdout[-600:]}\n{done.stderr[-1500:]}"
    if "Traceback" in done.stderr + done.stdout:
        return f"a traceback: {said}"
    if command == "audit" and done.exit_code in (3, 4) and "verdict" in done.stdout:
        return None  # its answer: something was found, or three seconds were too few to say
    if done.exit_code not in (0, 2, 3):
        return f"an exit code that says nothing: {said}"
    if done.exit_code == 0:
        return None
    if command == "ledger verify" and done.exit_code == 3:
        return None  # its answer: what is wrong with which ledger
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "stopped:"))]
    if len(lines) != 1:
        return f"{len(lines)} lines of error: {said}"
    if not kept:
        return f"something of the former result is lost or changed: {said}"
    told = json.loads(done.stdout.splitlines()[-1])
    if told["exit_code"] != done.exit_code or not told["message"]:
        return f"--json says something else: {said}"
    return None


def cases(commands: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(c, f) for f, fault in FAULTS.items() for c in commands if not fault.only or c in fault.only]


QUICK = ("resume", "data inspect")


@pytest.mark.parametrize(("command", "fault"), cases(QUICK))
def test_a_fault_is_told_in_one_line(command: str, fault: str, template: Path, tmp_path: Path) -> None:
    """Would catch a traceback, a fault passed over in silence, a result lost."""
    assert check(command, fault, template, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize(("command", "fault"), cases(tuple(c for c in COMMANDS if c not in QUICK)))
def test_all_other_commands_too(command: str, fault: str, template: Path, tmp_path: Path) -> None:
    assert check(command, fault, template, tmp_path) is None


@pytest.mark.parametrize("command", ["report", "resume"])
def test_without_a_fault_the_command_works(command: str, template: Path, tmp_path: Path) -> None:
    """Else everything above could pass on refusals that have nothing to do with the fault."""
    done, _ = tried(command, FAULTS["none"], template, tmp_path)
    assert done.exit_code == 0, done.stderr


def test_a_folder_without_permission_is_refused_before_pretraining(template: Path, tmp_path: Path) -> None:
    """Would catch an hour of pretraining thrown away: this many steps would take days."""
    fault = Fault(unwritable, Machine(ordinary=True), add=("--set", "pretraining.steps=100000000"))
    done, _ = tried("prepare", fault, template, tmp_path)
    assert done.exit_code == 2
    assert "no permission" in done.stderr
    assert "runs" in done.stderr


@pytest.mark.parametrize("name", ["", "x" * 65, "Müller GmbH", "../acme", ".hidden"])
def test_a_certificate_is_not_made_for_a_name_that_no_policy_has(name: str, tmp_path: Path) -> None:
    """Would catch an empty name that makes the coordinator's certificate, and a traceback of the library's."""
    (tmp_path / "place").mkdir()
    words = ["transport", "certificate", "keys", "--company", name]
    done = run_command(words, tmp_path / "place", Machine())
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "error: --company=" in done.stderr
    assert not (tmp_path / "place" / "keys").exists()
