"""The notebook of docs/: its cells run, in order, from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "results.ipynb"


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a name, column or function of the notebook that is not there any more, and empty tables."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    assert len(names["rounds"]) == 13
    assert len(names["ledgers"]) == 5 * 12
    assert [row.status for row in names["rows"]] == ["done", "done"]
    assert names["chain"][-1] > 0.1  # better than a guess
