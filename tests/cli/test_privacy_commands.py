"""`fedblocks account` and `fedblocks ledger`: figures against the accountant, ledgers read and left alone."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Machine, run_command
from typer.testing import CliRunner

from fedblocks.cli.ledger_tables import harmless
from fedblocks.cli.main import app
from fedblocks.client.policy import Policy
from fedblocks.errors import InputError, LedgerError, RunError
from fedblocks.experiments.presets import load_settings
from fedblocks.privacy.accounting import calibrate, epsilon, noise_multiplier_for
from fedblocks.privacy.composition import (
    BasicComposition,
    Run,
    Terms,
    fitting,
    in_a_fresh_ledger,
    run_epsilon,
)
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger import Ledger
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, write_simulation

DELTA = 1e-5


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def found(*words: object) -> dict[str, Any]:
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.exception
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def refused(*words: object) -> str:
    done = invoke(*words)
    assert isinstance(done.exception, (InputError, RunError)), (done.output, done.exception)
    assert done.stdout == ""
    return str(done.exception)


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def steps_of(noise: float, steps: int, rate: float = 0.5) -> GaussianSteps:
    """Of a block of the preset."""
    return GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps, dimension=167328)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as `prepare` leaves it, without its data; two of three companies have trained."""
    settings = load_settings(
        "digits", ["training.rounds=10", "training.local_steps=3", "training.sampling_rate=0.5"]
    )
    noise = calibrate(lambda z: steps_of(z, 30), 8.0, in_a_fresh_ledger(DELTA))
    plan = Plan(
        run="digits-1",
        model=settings.model,
        noise=settings.noise,
        training=settings.training,
        delta=DELTA,
        max_grad_norm=1.0,
        noise_multiplier=noise,
        company_clip=1.0,
        secure_aggregation=settings.secure_aggregation,
    )
    folder = RunFolder(tmp_path / "digits-1")
    folder.path.mkdir()
    folder.write_settings(settings, plan)
    write_simulation(folder.path, settings)
    terms = Terms(steps_of(noise, 3), 10)
    for company, rounds in (("company-0", 4), ("company-1", 10), ("company-2", 0)):
        home = folder.companies / company
        home.mkdir(parents=True)
        policy = Policy(company=company, epsilon_ceiling=8.0, delta=DELTA, data=settings.model.kind)
        (home / "policy.toml").write_text(tomli_w.dumps(policy.model_dump(exclude_none=True)))
        if rounds:
            with Ledger.open(home / "ledger.sqlite", company, 8.0, DELTA, clock=lambda: 1.7e9) as ledger:
                for n in range(rounds):
                    ledger.charge(
                        run="digits-1", round=n + 1, block=f"block-{n % 3}", release_id=f"{n}", terms=terms
                    )
    return folder.path


# --- account --------------------------------------------------------------------------------------------------


def test_direct_figures() -> None:
    got = found("account", "--sampling-rate", 0.01, "--noise-multiplier", 1, "--steps", 1000, "--delta", 1e-5)
    event = GaussianSteps(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)
    assert got["epsilon"] == epsilon([event], 1e-5)
    assert (got["unit"], got["adjacency"]) == ("one example of one company", "add or remove one example")
    assert (got["delta"], got["accountant"], got["mechanism"]) == (1e-5, "PLD", event.mechanism)
    assert GaussianSteps.from_json(json.dumps(got["event"])) == event


def test_no_finite_epsilon_is_null_and_said() -> None:
    words = ("account", "--sampling-rate", 0.5, "--noise-multiplier", 0.001, "--steps", 10)
    assert found(*words)["epsilon"] is None
    assert "infinite" in invoke(*words).output


def test_direct_noise_for_an_epsilon() -> None:
    got = found("account", "--epsilon", 8, "--sampling-rate", 0.5, "--steps", 120, "--delta", 1e-5)
    assert got["noise_multiplier"] == noise_multiplier_for(8.0, 1e-5, 0.5, 120)
    assert 7.92 <= got["epsilon"] <= 8
    assert got["steps_within"] >= 120


@pytest.mark.parametrize(
    ("words", "name", "accountant"),
    [
        ("--sampling-rate .01 --steps 100 --batch-cap 140 --examples 10000", "truncated_poisson", "PLD"),
        ("--epochs 10", "epoch_gaussian", "PLD"),
        ("--batch-size 100 --examples 10000 --steps 100", "fixed_size", "RDP"),
    ],
)
def test_direct_figures_of_other_batches(words: str, name: str, accountant: str) -> None:
    got = found("account", "--epsilon", 3, *words.split())
    assert got["event"]["mechanism"].startswith(name)
    assert got["accountant"] == accountant
    assert 2.97 <= got["epsilon"] <= 3
    assert ("replace" in got["adjacency"]) == (name == "fixed_size")


def test_a_preset_is_accounted_as_it_would_run() -> None:
    got = found("account", "digits", "--set", "training.rounds=20", "--set", "training.assignment=all")
    assert got["steps"] == got["rounds"] * got["releases_a_round"] == 60
    assert got["noise_multiplier"] == calibrate(lambda z: steps_of(z, 60, 0.1), 8.0, in_a_fresh_ledger(1e-5))
    assert got["epsilon"] == run_epsilon(steps_of(got["noise_multiplier"], 60, 0.1), 1e-5)
    assert "sum over runs" in got["composition"]
    assert got["release"]["dimension"] == 167328
    assert got["rounds_within"] >= 20
    fixed = found("account", "digits", "--set", "privacy.noise_multiplier=20", "--rounds", 7)
    assert (fixed["rounds"], fixed["noise_multiplier"]) == (7, 20.0)
    assert fixed["rounds_within"] > 7
    target = found("account", "digits", "--set", "privacy.noise_multiplier=20", "--target-epsilon", 3)
    assert 2.97 <= target["epsilon"] <= 3
    assert found("account", "digits", "--set", "privacy.epsilon=3") == target


@pytest.mark.slow
def test_rounds_left_by_company(run: Path) -> None:
    before = files(run)
    got = found("account", "--spent", run)
    assert files(run) == before
    by_company = {row["company"]: row for row in got["companies"]}
    assert [by_company[f"company-{i}"]["releases"] for i in range(3)] == [4, 10, 0]
    assert [by_company[f"company-{i}"]["rounds_left"] for i in range(3)] == [6, 0, 10]
    assert by_company["company-0"]["epsilon"] == by_company["company-1"]["epsilon"] == got["epsilon"]
    release = GaussianSteps.from_json(json.dumps(got["release"]))
    other = found("account", "digits", "--set", "privacy.noise_multiplier=30", "--spent", run)
    left = {row["company"]: row["rounds_left"] for row in other["companies"]}
    more, begun = steps_of(30.0, 1, 0.1), Run(Terms(release, 10), 4)
    # The run that has begun counts whole, and another needs what it leaves.
    assert left["company-0"] == left["company-1"] == fitting(BasicComposition(DELTA), [begun], more, 8.0)
    assert left["company-2"] == fitting(BasicComposition(DELTA), [], more, 8.0) > left["company-0"]


def test_rounds_left_after_one_ledger(run: Path) -> None:
    ledger = run / "companies" / "company-0" / "ledger.sqlite"
    got = found("account", "digits", "--rounds", 10, "--target-epsilon", 24, "--spent", ledger)
    (row,) = got["companies"]
    assert (row["company"], row["releases"], row["ceiling"]) == ("company-0", 4, 24.0)
    assert 0 < row["rounds_left"] < 10
    assert "give a preset" in refused("account", "--spent", ledger)


def test_people_see_what_a_figure_means(run: Path) -> None:
    shown = invoke("account", "digits", "--spent", run).output
    for word in ("add or remove one example", "PLD", "1e-05", "company-2", "rounds left"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "--noise-multiplier"),
        ("--noise-multiplier 1", "exactly one of"),
        ("--noise-multiplier 1 --sampling-rate .1", "--steps"),
        ("--noise-multiplier 1 --sampling-rate 2 --steps 1", "sampling_rate=2.0"),
        ("--noise-multiplier 0 --sampling-rate .1 --steps 1", "noise_multiplier=0.0"),
        ("--noise-multiplier 1 --sampling-rate .1 --steps 1 --delta 0", "delta=0.0"),
        ("--noise-multiplier 1 --sampling-rate .1 --epochs 3", "exactly one of"),
        ("--noise-multiplier 1 --epochs 3 --steps 3", "--steps=3"),
        ("--noise-multiplier 1 --sampling-rate .1 --steps 1 --batch-cap 3", "--examples"),
        ("--noise-multiplier 1 --sampling-rate .1 --steps 1 --examples 3", "--examples"),
        ("--noise-multiplier 1 --batch-size 4 --examples 3 --steps 1", "batch_size=4"),
        ("--epsilon 0 --sampling-rate .1 --steps 1", "epsilon=0.0"),
        ("--rounds 3", "need a preset"),
        ("nowhere", "no such preset"),
        ("digits --steps 3", "--steps=3"),
        ("digits --rounds 0", "training.rounds=0"),
        ("digits --set privacy.epsilon=none --set privacy.i_accept_no_dp=true", "adds no noise"),
        ("digits --spent missing.sqlite", "no such file"),
        ("--spent .", "not a run folder"),
    ],
)
def test_what_cannot_be_accounted_is_refused(
    words: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused("account", *words.split())
    assert list(tmp_path.iterdir()) == []


# --- ledger ---------------------------------------------------------------------------------------------------


def test_show_by_row(run: Path) -> None:
    before = files(run)
    ledgers = found("ledger", "show", run)["ledgers"]
    assert [(each["company"], len(each["rows"])) for each in ledgers] == [("company-0", 4), ("company-1", 10)]
    last = ledgers[1]["rows"][-1]
    assert (last["run"], last["round"], last["block"]) == ("digits-1", 10, "block-0")
    assert last["epsilon_after"] == ledgers[1]["epsilon"]
    assert last["event"]["steps"] == 3
    assert last["hash"] == ledgers[1]["head"]
    shown = invoke("ledger", "show", run, "--company", "company-0").output
    assert "digits-1" in shown
    assert "company-1" not in shown
    assert files(run) == before


def test_show_can_be_written_into_a_file(run: Path) -> None:
    """Would catch a table on stderr, or one that is cut at the width of a terminal that is not there."""
    shown = invoke("ledger", "show", run).stdout
    assert shown.count("digits-1") == 14
    assert "Poisson-subsampled Gaussian" in shown
    assert "\u2026" not in shown


def test_verify_says_which_accountants_agree(run: Path) -> None:
    before = files(run)
    got = found("ledger", "verify", run)
    assert got["ok"]
    assert [each["rows"] for each in got["ledgers"]] == [4, 10]
    for each in got["ledgers"]:
        last = each["independent"][-1]
        assert last["seq"] == each["rows"]
        assert last["lower"] <= last["epsilon"] <= last["upper"]
    home = found("ledger", "verify", run / "companies" / "company-0")
    assert home["ledgers"] == got["ledgers"][:1]
    assert "Opacus" in invoke("ledger", "verify", run).output
    assert files(run) == before


def test_verify_exits_3_and_says_what_is_wrong(run: Path) -> None:
    path = run / "companies" / "company-1" / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_update")
    connection.execute("UPDATE releases SET epsilon_after = 0.1 WHERE seq = 7")
    connection.commit()
    connection.close()
    done = invoke("ledger", "verify", run, "--json")
    assert done.exit_code == 3
    got = json.loads(done.stdout)
    assert [each["ok"] for each in got["ledgers"]] == [True, False]
    assert not got["ok"]
    assert "row 7: the content does not fit its hash" in got["ledgers"][1]["says"]
    assert invoke("ledger", "verify", run, "--company", "company-0").exit_code == 0
    assert invoke("ledger", "verify", run, "--company", "company-1").exit_code == 3
    assert isinstance(invoke("ledger", "show", run).exception, LedgerError)


def test_verify_while_another_process_holds_the_ledger(run: Path) -> None:
    path = run / "companies" / "company-0" / "ledger.sqlite"
    with Ledger.open(path, "company-0", 8.0, DELTA) as ledger:
        rows = ledger.rows()
        assert found("ledger", "verify", path)["ledgers"][0]["rows"] == len(rows)
        with ledger._store.transaction():
            assert found("ledger", "verify", path)["ledgers"][0]["head"] == rows[-1].hash


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_export_to_a_new_file_only(run: Path, tmp_path: Path, suffix: str) -> None:
    to = tmp_path / f"out{suffix}"
    assert found("ledger", "export", run, to)["rows"] == 14
    with to.open(newline="") as file:
        rows = list(csv.DictReader(file)) if suffix == ".csv" else [json.loads(line) for line in file]
    assert len(rows) == 14
    assert [row["company"] for row in rows] == ["company-0"] * 4 + ["company-1"] * 10
    assert float(rows[-1]["epsilon_after"]) == found("ledger", "show", run)["ledgers"][1]["epsilon"]
    before = to.read_bytes()
    assert "exists already" in refused("ledger", "export", run, to)
    assert to.read_bytes() == before


FORMULAS = [
    '=HYPERLINK("x")', "+1", "-1", "@SUM(A1)", "a;=cmd|'/C calc'!A0", "a; =1", 'a;"=1', "a,=1", "a|=1", "a =1",
    "\uff1d1", "a;\uff0b1", "\uff0d1", "\uff20x", "\ufe66x", "\u207ax", "\u22121", "\u20131", "a;\uff1d1", "'=1",
    "--1", "=", ";=;=", "a\\u003d1", "\\", '"', "a\\;=", "plain-name.1 of a company-0", "x=1", "é=1", "日=1", "a:=1",
    "a\U0001f600=1",
]  # fmt: skip
PRINTABLE = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" ;,|'\"=+-@\\"), min_size=1, max_size=40
)


def read_back(cell: str) -> str:
    """As documented: the cell is the inside of a JSON string whose quotes are not escaped."""
    text: str = json.loads('"' + cell.replace('"', '\\"') + '"')
    return text


def cells_of(line: str) -> list[str]:
    """What a program may take for cells, at any of the characters that programs split at, quotes or not."""
    return [part.strip(" \"'") for part in re.split(r"[,;|\t :]", line)]


@settings(max_examples=300, deadline=None)
@given(names=st.lists(st.sampled_from(FORMULAS) | PRINTABLE, min_size=3, max_size=3))
def test_no_text_of_an_export_is_a_formula_wherever_it_is_split_and_all_is_read_back(
    names: list[str],
) -> None:
    """Would catch a formula after a semicolon, in full width, or behind a quote, and an escape that loses text."""
    written = [str(harmless(name)) for name in names]
    assert [read_back(cell) for cell in written] == names
    out = io.StringIO()
    csv.writer(out).writerow(written)
    for cell in cells_of(out.getvalue().strip()):
        assert not unicodedata.normalize("NFKC", cell).startswith(("=", "+", "-", "@")), cell


@pytest.mark.parametrize("name", ["plain-name.1 of a company-0", "x=1", "a@b.example", "1e+20"])
def test_what_cannot_be_a_formula_is_exported_as_it_is(name: str) -> None:
    assert harmless(name) == name


def test_export_holds_no_formulas(tmp_path: Path) -> None:
    path, to = tmp_path / "ledger.sqlite", tmp_path / "out.csv"
    names = [name for name in FORMULAS if name.isprintable()]
    with Ledger.open(path, "acme", 8.0, DELTA) as ledger:
        terms = Terms(steps_of(20.0, 1), 2)
        for i, name in enumerate(names):
            # A ledger has room for 32 runs.
            ledger.charge(run=names[i % 30], round=1, block=name, release_id=f"{name}{i}", terms=terms)
    assert found("ledger", "export", path, to)["rows"] == len(names)
    with to.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [read_back(row["block"]) for row in rows] == names
    assert [read_back(row["run"]) for row in rows] == [names[i % 30] for i in range(len(names))]
    assert {json.loads(read_back(row["event"]))["mechanism"] for row in rows} == {GaussianSteps.NAME}
    for line in to.read_text("utf-8").splitlines():
        for cell in cells_of(line):
            assert not unicodedata.normalize("NFKC", cell).startswith(("=", "+", "-", "@")), cell


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("show", "missing.sqlite"), "no such file"),
        (("verify", "missing.sqlite"), "no such file"),
        (("export", "missing.sqlite", "out.csv"), "no such file"),
        (("show", "."), "no ledger here"),
        (("export", "missing.sqlite", "out.txt"), "must end in"),
    ],
)
def test_missing_ledgers_are_named_and_not_made(
    words: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in refused("ledger", *words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_company_is_named(run: Path) -> None:
    assert "--company='acme'" in refused("ledger", "show", run, "--company", "acme")


def test_exit_codes_of_the_program(run: Path) -> None:
    """In a process of its own: one line of error, never a traceback."""
    (run / "companies" / "company-0" / "ledger.sqlite").write_text("not a database " * 100)
    for words, code in (
        (("ledger", "show", "missing"), 2),
        (("ledger", "show", str(run)), 3),
        (("ledger", "verify", str(run)), 3),
        (("account", "--epsilon", "8"), 2),
    ):
        done = run_command(list(words), run, Machine())
        assert done.exit_code == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
