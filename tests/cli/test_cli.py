"""The command line as a user meets it: exit codes, one-line errors, nothing written on bad input, --json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import Done, Machine, run_command

FEDBLOCKS = Path(sys.executable).with_name("fedblocks")


def fedblocks(*words: str, cwd: Path) -> Done:
    return run_command(list(words), cwd, Machine())


def bad_npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {"images": np.random.default_rng(0).random((100, 8, 8)), "labels": np.arange(100) % 10}
    np.savez(path, **(arrays | changes))
    return path


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("privacy.epsilon=-1", "privacy.epsilon=-1"),
        ("privacy.budget=1", "privacy.budget=1: unknown field"),
        ("companies.count=2", "companies.count=2"),
        ('data.private.source="missing.npz"', "data.private.source='missing.npz': no such file"),
        ('data.private.source="nan.npz"', "images hold NaN"),
        ('data.private.source="labels.npz"', "label 10 is outside 0 to 9"),
    ],
)
def test_bad_input_exits_2_with_one_line_and_writes_nothing(tmp_path: Path, word: str, expected: str) -> None:
    bad_npz(tmp_path / "nan.npz", images=np.full((100, 8, 8), np.nan))
    bad_npz(tmp_path / "labels.npz", labels=np.arange(100) % 11)
    before = sorted(tmp_path.rglob("*"))
    done = fedblocks("simulate", "digits", "--set", word, "--json", cwd=tmp_path)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert expected in done.stderr
    told = json.loads(done.stdout)
    assert (told["failed"], told["exit_code"]) == ("error", 2)
    assert expected in told["message"]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_are_not_there_are_named(tmp_path: Path) -> None:
    for command in ("audit", "report"):
        done = fedblocks(command, cwd=tmp_path)
        assert done.exit_code == 2
        assert "no run here yet" in done.stderr
        done = fedblocks(command, "nowhere", cwd=tmp_path)
        assert done.exit_code == 2
        assert "not a run folder" in done.stderr
    assert fedblocks("simulate", cwd=tmp_path).exit_code == 2
    assert fedblocks("simulate", "digits", "--resume", "x", cwd=tmp_path).exit_code == 2


def test_presets_are_listed(tmp_path: Path) -> None:
    assert "digits" in json.loads(fedblocks("presets", "--json", cwd=tmp_path).stdout)["presets"]


def test_the_installed_program_is_this_command_line_with_its_exit_codes(tmp_path: Path) -> None:
    """Every other test calls what this program calls. Would catch an entry point that is gone, or another's code."""
    wrong = ("ledger", "show", "missing.sqlite", "--json")
    for words, code in ((("--version",), 0), (wrong, 2)):
        done = subprocess.run(
            [FEDBLOCKS, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if words is wrong:
            assert len(done.stderr.strip().splitlines()) == 1
            assert json.loads(done.stdout)["exit_code"] == 2
        else:
            assert done.stdout.startswith("fedblocks 0.")
    assert not list(tmp_path.iterdir())


def test_help_is_quick_because_it_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """What takes longest to import; `fedblocks bench trial` measures the time itself."""
    code = (
        "import sys, fedblocks.cli.main; "
        "sys.exit(', '.join({'torch', 'flwr', 'numpy', 'scipy', 'grpc', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(("missing", "extra"), [("opacus.accountants", "audit"), ("sklearn", "simulation")])
def test_a_package_of_an_extra_that_is_missing_is_one_line_that_names_the_extra(
    missing: str, extra: str
) -> None:
    """Would catch a traceback on a company's machine, where only what an agent needs is installed."""
    code = (
        "import fedblocks.cli.main as cli\n"
        f"def missing(**_): raise ModuleNotFoundError('gone', name={missing!r})\n"
        "cli.app = missing\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"pip install 'fedblocks[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
