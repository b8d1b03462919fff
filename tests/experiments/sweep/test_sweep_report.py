"""The report of a sweep and of its cells: real runs in a sweep's folder, their page in a real browser."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL
from jsonschema import Draft202012Validator
from playwright.sync_api import Browser
from support.browsers import browser as browser
from typer.testing import CliRunner

from fedblocks import atomic_file
from fedblocks.cli.main import app
from fedblocks.experiments.sweep.cell import Folders, run_cell
from fedblocks.experiments.sweep.grid import Grid
from fedblocks.experiments.sweep.report import render_sweep
from fedblocks.experiments.sweep.report_data import schema
from fedblocks.experiments.sweep.scheduler import ASKED, Sweep
from fedblocks.experiments.sweep.shared import start
from fedblocks.experiments.sweep.strongest import strongest
from fedblocks.experiments.sweep.table import TABLE, Row, read_table, write_table
from fedblocks.server.run_folder import RunFolder
from fedblocks.threat_model.audit_file import Audit, Verdict
from fedblocks.threat_model.gate import Gate
from fedblocks.threat_model.intervals import proportion
from fedblocks.threat_model.report.check import lines_of
from fedblocks.threat_model.report.judgement import number
from fedblocks.threat_model.report.write import render
from fedblocks.threat_model.results import Result, Statement

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def swept(private_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two private runs, one without noise, a baseline, and a cell that failed."""
    overrides = [*SMALL, "training.rounds=2", f"data.private.source={private_file}"]
    grid = Grid.of("digits", ["privacy.epsilon=3,8,none"], overrides=overrides)
    sweep = Sweep.of(grid, tmp_path_factory.mktemp("runs"))
    cells = [cell for cell in grid.cells if cell.kind != "alone"]
    started = start(sweep.folder / "shared" / "a", cells[0]).path
    rows = [
        run_cell(cell, Folders(started=started, run=sweep.folder / "cells" / cell.name), audit=False)
        for cell in cells
    ]
    rows.append(
        Row(
            cell="lost", kind="run", seed=1, axes={"privacy.epsilon": 3.0}, status="failed", reason="<no memory>",
            epsilon=3.0, digest="lost",
        )
    )  # fmt: skip
    write_table(sweep.folder / TABLE, rows)
    atomic_file.write(sweep.folder / ASKED, json.dumps(sweep._asked(audit=False)).encode())
    return sweep.folder


@pytest.fixture
def copy(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / swept.name))


def told(statement: Statement, outcome: str, value: float, n: int = 40) -> Result:
    own = proportion(round(value * n), n)
    return Result.model_validate(
        {
            "attack": f"{statement}-attack", "adversary": "coordinator", "view": "the opened sum", "unit":
            "auc" if statement == "membership" else "share", "statistic": "exact", "statement": statement, "block": 0,
            "outcome": outcome, "reason": "the time ran out" if outcome == "inconclusive" else "", "value": own,
            "baseline": proportion(n // 2 if statement == "membership" else 0, n),
        }
    )  # fmt: skip


# What the audits of the sweep's settings came to: passed with members found, left open, failed.
AUDITS = {
    3.0: (told("reconstruction", "not found", 0.0), told("membership", "found", 0.7)),
    8.0: (told("reconstruction", "not found", 0.0), told("membership", "inconclusive", 0.8, 12)),
    None: (told("reconstruction", "found", 1.0), told("membership", "found", 1.0)),
}


@pytest.fixture
def audited(copy: Path) -> Path:
    """The sweep with audits of every ending: what is tested is the page, not an attack."""
    rows = []
    for row in read_table(copy / TABLE):
        if row.kind != "run" or row.status == "failed":
            rows.append(row)
            continue
        run, results = RunFolder.existing(copy / "cells" / row.cell), AUDITS[row.epsilon]
        plan, ordered = run.plan(), tuple(sorted(results, key=lambda each: each.key))
        audit = Audit(
            version="0", run=plan.run, plan=plan.digest().hex(), round=plan.training.rounds, blocks=(0, 1),
            adversaries=("coordinator",),
            seed=0, minutes=2.0, seconds=1.0, gate=Gate(), results=ordered, verdict=Verdict.of(ordered, Gate()),
        )  # fmt: skip
        audit.write(run)
        rows.append(replace(row, audit=audit.verdict.ending, attacks=strongest(ordered)))
    write_table(copy / TABLE, rows)
    return copy


def test_what_may_be_chosen_follows_from_gates_and_says_how_to_go_on(audited: Path) -> None:
    """Would catch a setting that a failed gate lets pass, one that is lost, and a choice that no sentence gives."""
    table = {row.cell: row for row in read_table(audited / TABLE)}
    write_table(audited / TABLE, [row for row in table.values() if row.cell != "lost"])
    report, page = render_sweep(audited, figure=False)
    found = {each.setting: each for each in report.choice.candidates}
    assert {name: each.standing for name, each in found.items()} == {
        "ε 3": "passes", "ε 8": "open", "no noise": "ruled out",
    }  # fmt: skip
    assert report.choice.setting == "ε 3"
    assert report.choice.next_step == ""
    assert "the one setting of which every run passes its gate, ε 3" in report.choice.sentence
    assert "Ruled out by their own gates: no noise." in report.choice.sentence
    assert any("its gate allows what it found" in each for each in found["ε 3"].against)
    assert found["ε 8"].attacks[0] == "reconstruction 0% (0% to 8.81%), reconstruction-attack"
    assert found["ε 8"].attacks[1].startswith("membership AUC 0.8")
    assert found["ε 8"].attacks[1].endswith("membership-attack, cut short")
    assert "there is no differential privacy" in found["no noise"].against
    texts = " ".join(lines_of(page))
    assert "In 1 of the audits behind it the strongest attack’s time ran out" in page.replace("\n", " ")
    for each in found.values():
        assert all(said in texts for said in (each.setting, *each.attacks, *each.against))
        quality = [
            row.quality for row in table.values() if row.kind == "run" and row.epsilon == _asked(each.setting)
        ]
        assert each.quality in quality


def _asked(setting: str) -> float | None:
    return None if setting == "no noise" else float(setting.removeprefix("ε "))


def test_where_nothing_passes_the_longer_audit_of_the_best_is_named(audited: Path) -> None:
    """Would catch a sweep whose short audits leave everything open, and a page that stops there."""
    report, page = render_sweep(audited, figure=False)  # with the cell of ε 3 that failed
    assert report.choice.setting is None
    found = {each.setting: each for each in report.choice.candidates}
    assert found["ε 3"].standing == "open"
    assert "1 of 2 runs without a result" in found["ε 3"].against
    [cell] = [each.cell for each in report.cells if each.setting == "ε 8"]  # of ε 3 nothing is open, but lost
    assert report.choice.next_step == f"fedblocks audit {audited / 'cells' / cell} --minutes 10"
    assert report.choice.next_step in page
    assert "none can be chosen without a person" in report.choice.sentence


def invoke(*words: str | Path) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["report", *map(str, words)])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout


@pytest.mark.slow
def test_the_numbers_of_a_sweeps_page_are_those_of_its_table_and_of_its_cells(copy: Path) -> None:
    """Would catch a figure that pandas reads otherwise from the table, and a verdict that is not the cell's own."""
    report, page = render_sweep(copy, figure=False)
    table = pd.read_parquet(copy / TABLE)
    texts = lines_of(page)
    assert [cell.cell for cell in report.cells] == list(table["cell"])
    for cell, (_, row) in zip(report.cells, table.iterrows(), strict=True):
        if row["status"] == "failed":
            assert (cell.gate, cell.failure) == (None, "<no memory>")
            continue
        assert cell.quality == row["quality"]
        assert f"{row['quality']:.1%}" in texts
        if cell.kind == "run":
            own = render(RunFolder.existing(copy / "cells" / cell.cell), drawn=False).report
            assert cell.gate == own.verdict.ending
            assert cell.epsilon_spent == own.promise.epsilon
            assert cell.open_questions == tuple(r.topic for r in own.verdict.reasons if r.good is not True)
            if own.promise.epsilon is not None:
                assert number(row["epsilon_spent"]) in texts
    assert "&lt;no memory&gt;" in page
    assert "<no memory>" not in page
    shared = {each.what: each.value for each in report.common}
    assert shared["δ"] == "1e-5"
    assert shared["companies"] == "5"
    assert "holds against" not in shared  # a run without noise has none
    assert report.choice.setting is None  # nobody has audited a run
    assert all(check.agrees for check in report.checks)


def test_the_command_writes_data_of_the_published_schema_and_checks_them(copy: Path) -> None:
    """Would catch data that the published schema knows nothing of, and a check that always agrees."""
    code, printed = invoke(copy, "--json")
    assert code == 0
    data = json.loads(printed)
    assert (data["kind"], Path(data["report"])) == ("sweep", copy / "report.html")
    assert json.loads((REPOSITORY / "docs" / "report.schema.json").read_text("utf-8")) == schema()
    validator = Draft202012Validator(schema())
    validator.validate(data)
    assert not validator.is_valid({**data, "cells": [{}]})
    assert invoke(copy, "--check")[0] == 0
    page = (copy / "report.html").read_text("utf-8")
    (copy / "report.html").write_text(page.replace("What may be chosen", "Choose"), "utf-8")
    code, printed = invoke(copy, "--check", "--json")
    assert code == 3
    assert "What may be chosen" in json.loads(printed)["differences"][0]


@pytest.mark.slow
def test_one_changed_number_in_a_cells_metrics_fails_the_check_of_sweep_and_cell(copy: Path) -> None:
    """Would catch a sweep's page that trusts its table where a run's own file says otherwise."""
    cell = RunFolder.existing(next(path for path in (copy / "cells").glob("epsilon-3*")))
    assert invoke(copy)[0] == invoke(cell.path)[0] == 0
    rows = cell.metrics()
    rows[-1]["quality"]["heldout"][-1] += 0.05
    cell.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for folder in (copy, cell.path):
        code, printed = invoke(folder, "--check", "--json")
        assert code == 3
        assert any(
            "disagree" in each and "accuracy after" in each for each in json.loads(printed)["differences"]
        )
    report, _ = render_sweep(copy, figure=False)
    wrong = [check.what for check in report.checks if not check.agrees]
    assert any(what.startswith("quality (") for what in wrong)  # the table beside the run's metrics


@pytest.mark.slow
def test_the_report_of_a_cell_shows_its_sweeps_frontier_and_another_run_says_how_to_make_one(
    copy: Path, tmp_path: Path
) -> None:
    """Would catch a frontier of another sweep, or none where the run lies in one."""
    cell = next(path for path in (copy / "cells").glob("epsilon-8*"))
    data = json.loads(invoke(cell, "--json")[1])
    Draft202012Validator(schema()).validate(data)
    assert data["frontier"]["sweep"] == copy.name
    table = pd.read_parquet(copy / TABLE)
    spent = {p["epsilon"]: p["epsilon_spent"] for p in data["frontier"]["points"] if p["kind"] == "private"}
    runs = table[(table["status"] == "done") & (table["kind"] == "run")].dropna(subset=["epsilon"])
    assert spent == dict(zip(runs["epsilon"], runs["epsilon_spent"], strict=True))
    text = " ".join(lines_of((cell / "report.html").read_text("utf-8")))
    for point in data["frontier"]["points"]:
        assert point["setting"] in text
    alone = Path(shutil.copytree(cell, tmp_path / "alone"))
    data = json.loads(invoke(alone, "--json")[1])
    assert data["frontier"] is None
    page = unescape((alone / "report.html").read_text("utf-8"))
    assert f"fedblocks sweep {alone}/settings.toml --over privacy.epsilon=1,3,8,none" in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_sweeps_page_fits_the_screen(swept: Path, browser: Browser, width: int) -> None:
    """Would catch a first page of more than a screen, a page wider than the screen, or columns that are cut."""
    page_file = swept / "report.html"
    if not page_file.is_file():
        assert invoke(swept)[0] == 0
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_navigation_timeout(240_000)
    page.goto(page_file.as_uri())
    bottom = page.evaluate("document.querySelector('.cover').getBoundingClientRect().bottom")
    assert bottom <= (800 if width == 1280 else 3 * 844)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    assert page.evaluate("document.scripts.length") == 0
