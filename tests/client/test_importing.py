"""A company's import: the same examples from every source, whole or not at all, and no password anywhere."""

from __future__ import annotations

import io
import json
import logging
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import SecretStr
from support import postgresql
from typer.testing import CliRunner

from fedblocks.blocks.examples import Examples
from fedblocks.cli.company_source import Told, source_of
from fedblocks.cli.main import app
from fedblocks.client.company import Company
from fedblocks.client.data.tables.database import password_file, using_password
from fedblocks.client.decision_chain import whole_lines
from fedblocks.client.home import make_home
from fedblocks.client.importing import Imported, import_data
from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError

PASSWORD = "pa55-w0rd:with@signs"
CONTRACT = """
kind = "table"
label = "bought"
labels = ["no", "yes"]
missing = "drop"
[numeric]
size = [0, 10]
[categories]
colour = ["red", "blue"]
"""
ROWS = pd.DataFrame(
    {
        "size": [float(i % 10) for i in range(40)] + [None, 3.0],
        "colour": ["red", "blue"] * 20 + ["red", None],
        "bought": ["yes", "no", "no", "yes"] * 10 + ["yes", "no"],
        "name": [f"person {i}" for i in range(42)],
    }
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "acme", "acme", epsilon_ceiling=8.0, delta=1e-5).parent


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "contract.toml"
    path.write_text(CONTRACT)
    return path


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """The URL of a PostgreSQL that asks for a password; it has the rows in a table."""
    import sqlalchemy as sql

    with postgresql.server(PASSWORD) as url:
        engine = sql.create_engine(sql.make_url(url).set(password=PASSWORD))
        with engine.begin() as connection:
            ROWS.to_sql("orders", connection, index=False)
        engine.dispose()
        yield url


def read(home: Path, told: Told, *, replace: bool = False) -> Imported:
    return import_data(home, told.source, told.model, told.match_contrast, replace=replace)


def test_the_same_rows_from_every_kind_of_table_have_one_fingerprint(
    home: Path, contract: Path, tmp_path: Path, guarded: str
) -> None:
    """Oracle: CSV. Would catch a type that a format or a database changes, and a fingerprint of the file around."""
    import sqlalchemy as sql

    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    ROWS.to_parquet(tmp_path / "rows.parquet")
    engine = sql.create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    ROWS.to_sql("orders", engine, index=False)
    engine.dispose()
    query = "select size, colour, bought from orders"
    found = []
    for source, statement in (
        (str(tmp_path / "rows.csv"), None),
        (str(tmp_path / "rows.parquet"), None),
        (f"sqlite:///{tmp_path / 'rows.db'}", query),
        (guarded, query),
        (guarded.replace("+psycopg", ""), query),
    ):
        with using_password(SecretStr(PASSWORD)):
            found.append(read(home, source_of(source, contract, None, statement, None), replace=bool(found)))
    assert len({each.fingerprint for each in found}) == 1
    assert found[0].examples == 40
    assert found[0].findings.left_out == {"column 'size' is empty": 1, "column 'colour' is empty": 1}
    assert "'name'" in found[0].findings.facts["columns not read"]
    assert [each.declared for each in found] == [True, False, False, False, False]
    kept = Examples.load(home / "data.npz")
    assert torch.equal(kept.targets[:4], torch.tensor([1, 0, 0, 1]))
    assert stat.S_IMODE((home / "data.npz").stat().st_mode) == 0o600
    told = json.loads((home / "data.json").read_text())
    assert told["fingerprint"] == kept.digest.hex()
    assert "person" not in (home / "data.json").read_text()
    assert len(Company(home, load_policy(home / "policy.toml")).data()) == 40


def test_images_texts_and_series_are_read_as_training_reads_them(tmp_path: Path) -> None:
    """Would catch a connector that the import does not reach, or data that the agent then refuses."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.random((30, 8, 8)), labels=np.arange(30) % 10)
    for label in range(10):
        (tmp_path / f"folder/{label}").mkdir(parents=True)
        for i in range(2):
            picture = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
            picture.save(tmp_path / f"folder/{label}/{i}.png")
    lines = "\n".join(json.dumps({"text": "plain words " * 40}) for _ in range(20))
    (tmp_path / "texts.jsonl").write_text(lines)
    for source, model, least in (
        ("images.npz", "digits", 30),
        ("folder", "digits", 20),
        ("texts.jsonl", "ar-text", 100),
    ):
        home = make_home(tmp_path / f"home-{source}", "acme", epsilon_ceiling=8.0, delta=1e-5).parent
        found = read(home, source_of(str(tmp_path / source), None, model, None, None))
        assert found.examples >= least
        assert len(Company(home, load_policy(home / "policy.toml")).data()) == found.examples


def test_texts_of_a_database_are_those_of_json_lines(home: Path, tmp_path: Path) -> None:
    """Oracle: the same texts as JSON lines. Would catch a row lost, and NULL taken for the text None."""
    import sqlalchemy as sql

    texts = [f"document {i} has some words " * 20 for i in range(20)]
    lines = "\n".join(json.dumps({"body": text}) for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    engine = sql.create_engine(f"sqlite:///{tmp_path / 'texts.db'}")
    pd.DataFrame({"body": [*texts, None]}).to_sql("notes", engine, index=False)
    engine.dispose()
    contract = tmp_path / "contract.toml"
    contract.write_text('kind = "text"\nfield = "body"\nmissing = "drop"\n')
    by_lines = read(home, source_of(str(tmp_path / "texts.jsonl"), contract, "ar-text", None, None))
    told = source_of(
        f"sqlite:///{tmp_path / 'texts.db'}", contract, "ar-text", "select body from notes", None
    )
    by_rows = read(home, told, replace=True)
    assert by_rows.fingerprint == by_lines.fingerprint
    assert any("1 document without text" in note for note in by_rows.findings.notes)
    contract.write_text('kind = "text"\nfield = "body"\ntable = "notes"\n')
    with pytest.raises(InputError, match=r"row 21 of column 'body'"):
        read(
            home,
            source_of(f"sqlite:///{tmp_path / 'texts.db'}", contract, "ar-text", None, None),
            replace=True,
        )


def test_the_password_is_in_nothing_that_is_said_kept_or_raised(
    guarded: str, contract: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a URL rendered with its password by a driver, in an error, a log, a repr or data.json."""
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    given = password_file(secret)
    assert PASSWORD not in f"{given!r} {given}"
    said = []
    told = source_of(guarded, contract, None, "select * from nothing_here", None)
    wrong = source_of(guarded, contract, None, "select * from orders", None)
    for source, password in ((told, given), (wrong, SecretStr(f"{PASSWORD}-wrong")), (wrong, None)):
        with using_password(password), pytest.raises(InputError) as caught:
            read(home, source)
        error: BaseException | None = caught.value
        while error is not None:
            said.append(f"{error!r} {error}")
            error = error.__context__
        said += traceback.format_exception(caught.value)
    for reason in ("password or the user's name is wrong", "a password is needed"):
        assert reason in "".join(said)
    with using_password(given):
        read(home, wrong)
    said += [caplog.text, *(path.read_text("latin-1") for path in home.iterdir())]
    assert PASSWORD not in "".join(said)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host/db",
        "postgresql://me@host/db?password=s3cret",
        "postgresql://me@host/db?sslpassword=s3cret",
        "mysql://me:s3cret@host/db",
    ],
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(
    url: str, home: Path, contract: Path
) -> None:
    """Would catch one that stands in the URL's query, which SQLAlchemy does not hide."""
    done = CliRunner().invoke(app, ["company", "import", url, str(home), "--contract", str(contract)])
    assert isinstance(done.exception, InputError)
    assert "--password-file" in str(done.exception)
    assert "s3cret" not in f"{done.exception!r} {done.output}"


def test_a_password_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    for content in (PASSWORD, "\n"):
        with pytest.raises(InputError, match=r"chmod 600|first line") as caught:
            password_file(secret)
        assert PASSWORD not in str(caught.value)
        secret.write_text("\n" if content == PASSWORD else PASSWORD)
        secret.chmod(0o600)


def test_a_query_cannot_change_the_database(guarded: str, contract: Path, home: Path, tmp_path: Path) -> None:
    """Would catch a statement that deletes what it reads, in either database."""
    import sqlalchemy as sql

    engine = sql.create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    ROWS.to_sql("orders", engine, index=False)
    bad = "delete from orders returning *"
    for source in (guarded, f"sqlite:///{tmp_path / 'rows.db'}"):
        with using_password(SecretStr(PASSWORD)), pytest.raises(InputError, match="not readable"):
            read(home, source_of(source, contract, None, bad, None))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from orders").scalar() == len(ROWS)
    engine.dispose()
    with using_password(SecretStr(PASSWORD)):
        assert read(home, source_of(guarded, contract, None, "select * from orders", None)).examples == 40


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [("x,red,yes", "not a number"), ("1,red,maybe", "contract"), ("inf,red,yes", "finite")],
)
def test_data_that_cannot_be_used_leave_the_home_as_it_was(
    cells: str, complaint: str, home: Path, tmp_path: Path
) -> None:
    """Would catch a half import: new data beside an old data.json, or a policy that declares what is not there."""
    contract = tmp_path / "contract.toml"
    contract.write_text(CONTRACT.replace('missing = "drop"', ""))
    good = "\n".join(f"{i % 10},red,{'yes' if i % 2 else 'no'}" for i in range(30))
    source = tmp_path / "rows.csv"
    source.write_text(f"size,colour,bought\n{good}\n{cells}\n")
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(InputError, match=complaint):
        read(home, source_of(str(source), contract, None, None, None))
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_data_are_replaced_only_when_told_and_only_by_the_same_kind(
    home: Path, contract: Path, tmp_path: Path
) -> None:
    """Would catch a second import that silently ends a run, and one for another model."""
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    told = source_of(str(tmp_path / "rows.csv"), contract, None, None, None)
    first = read(home, told)
    with pytest.raises(InputError, match="--replace"):
        read(home, told)
    narrower = tmp_path / "narrow.toml"
    narrower.write_text(CONTRACT.replace("[categories]\n", "").replace('colour = ["red", "blue"]\n', ""))
    with pytest.raises(InputError, match="declares other data"):
        read(home, source_of(str(tmp_path / "rows.csv"), narrower, None, None, None), replace=True)
    assert Examples.load(home / "data.npz").digest.hex() == first.fingerprint


def test_an_import_after_the_ledger_was_created_is_on_record(
    home: Path, contract: Path, tmp_path: Path
) -> None:
    """Would catch data that are replaced without a trace in the company's own record."""
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    told = source_of(str(tmp_path / "rows.csv"), contract, None, None, None)
    read(home, told)
    Company(home, load_policy(home / "policy.toml")).create_ledger()
    found = read(home, told, replace=True)
    entries = [json.loads(line) for line in whole_lines(home / "decisions.jsonl")]
    assert [entry["what"] for entry in entries] == ["begun", "data"]
    assert (entries[1]["digest"], entries[1]["examples"]) == (found.fingerprint, 40)


def test_a_contract_that_is_not_the_models_is_named_by_its_field(
    home: Path, contract: Path, tmp_path: Path
) -> None:
    """Would catch a complaint about shapes alone, by which nobody finds the column that is one too many."""
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(InputError, match=r"model\.numeric"):
        read(home, source_of(str(tmp_path / "rows.csv"), contract, "tabular-cancer", None, None))
    with pytest.raises(InputError, match="--model"):
        source_of(str(tmp_path / "rows.csv"), None, None, None, None)
    with pytest.raises(InputError, match="--query"):
        source_of("sqlite:///x.db", None, "digits", "select 1", None)


def test_no_example_changes_how_another_is_scaled(home: Path, contract: Path, tmp_path: Path) -> None:
    """Public scaling: would catch a range or a mean that is taken from private rows."""
    ROWS[:40].to_csv(tmp_path / "few.csv", index=False)
    extra = ROWS[:40].assign(size=ROWS[:40]["size"] * 0.01)
    pd.concat([ROWS[:40], extra]).to_csv(tmp_path / "more.csv", index=False)
    read(home, source_of(str(tmp_path / "few.csv"), contract, None, None, None))
    few = Examples.load(home / "data.npz")
    read(home, source_of(str(tmp_path / "more.csv"), contract, None, None, None), replace=True)
    assert torch.equal(Examples.load(home / "data.npz").inputs[:40], few.inputs)


def test_an_import_is_told_on_stderr_and_as_json_alone_on_stdout(
    home: Path, contract: Path, tmp_path: Path
) -> None:
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    words = ["company", "import", str(tmp_path / "rows.csv"), str(home), "--contract", str(contract)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    told = json.loads(io.StringIO(done.stdout).read())
    assert (told["examples"] + told["held_out"], told["left_out"]["column 'size' is empty"]) == (40, 1)
    assert told["examples"] == len(Examples.load(home / "data.npz"))
