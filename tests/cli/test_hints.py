"""Command lines that are printed for people to copy."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fedblocks.cli.runs import shortest


def test_a_path_in_a_hint_is_one_word_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a hint that fails when it is copied, since a folder has a space in its name."""
    folder = tmp_path / "my runs" / "digits's"
    folder.mkdir(parents=True)
    assert shlex.split(f"fedblocks report {shortest(folder)}")[2:] == [str(folder)]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(f"fedblocks report {shortest(folder)}")[2:] == ["my runs/digits's"]
