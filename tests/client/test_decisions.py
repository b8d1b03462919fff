"""The record of decisions: nothing can be removed, changed, moved or cut off, and nothing private stands in it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.coordinating import Coordinator
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.decision_chain import GENESIS, check_chain, hash_of, line_of, whole_lines
from fedblocks.client.decisions import Decisions, verify
from fedblocks.client.policy import Policy
from fedblocks.client.replay_guard import STEPS_FILE, Steps
from fedblocks.errors import InputError, LedgerError
from fedblocks.experiments.simulation.preparation import prepare, save_policy
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.protocol.messages import JOIN, TRAIN, JoinRequest, refused
from fedblocks.settings import DataKind, SimulationSettings

TERMS = Terms(GaussianSteps(sampling_rate=0.1, noise_multiplier=4.0, steps=1, dimension=10), 50)


def new_company(home: Path) -> Company:
    home.mkdir(mode=0o700)
    kind = DataKind(inputs=(2,), targets=(), target_classes=2)
    policy = Policy(company="acme", epsilon_ceiling=50.0, delta=1e-5, data=kind)
    save_policy(home, policy)
    return Company(home, policy)


def charge(company: Company, number: int, *, logged: bool = True) -> None:
    with company.ledger() as ledger:
        ledger.charge(run="r", round=number, block="b", release_id=f"{number}", terms=TERMS)
        if logged:
            company.decisions.charged(ledger.rows())


@pytest.fixture
def company(tmp_path: Path) -> Company:
    """Its record has eight lines, three of them of charges."""
    made = new_company(tmp_path / "acme")
    made.decisions.write("asked", run="r")
    for number in range(3):
        charge(made, number)
        made.decisions.write("sent", run="r", bytes=number)
    assert len(whole_lines(made.decisions.path)) == 8
    return made


def test_a_whole_record_is_verified(company: Company) -> None:
    found = verify(company.home)
    assert (found.lines, found.rows, found.unlogged, found.beyond) == (8, 3, 0, 0)
    assert stat.S_IMODE(company.decisions.path.stat().st_mode) == 0o600


def without(n: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:n] + lines[n + 1 :]


def swapped(n: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]]


def changed(n: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:n], lines[n].replace(b'"what": "', b'"what": "x'), *lines[n + 1 :]]


def cut(n: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:n]


def twice(n: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[: n + 1], *lines[n:]]


def rewritten(n: int) -> Callable[[list[bytes]], list[bytes]]:
    """Line n without its fields, and every hash from there on made anew: what the file's owner can do."""

    def forge(lines: list[bytes]) -> list[bytes]:
        kept, before = lines[:n], hash_of(lines[n - 1]) if n else GENESIS
        for number, line in enumerate(lines[n:], start=n + 1):
            entry = json.loads(line)
            told = {k: v for k, v in entry.items() if k not in ("line", "time", "what", "before", "hash")}
            forged = line_of(number, entry["time"], entry["what"], {} if number == n + 1 else told, before)
            kept.append(forged)
            before = hash_of(forged)
        return kept

    return forge


@pytest.mark.parametrize("bend", [without, swapped, changed, cut, twice, rewritten], ids=lambda f: f.__name__)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_line_that_is_removed_changed_moved_or_cut_off_is_found(
    company: Company, bend: Callable[[int], Callable[[list[bytes]], list[bytes]]], place: int
) -> None:
    """Would catch a chain without a head kept elsewhere, a hash that covers a part, lines not counted."""
    path = company.decisions.path
    path.write_bytes(b"".join(bend(place)(whole_lines(path))))
    with pytest.raises(LedgerError, match=r"decisions\.jsonl"):
        verify(company.home)
    done = CliRunner().invoke(cli, ["agent", "log", str(company.home), "--verify", "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["ok"] is False


def test_another_history_of_all_files_is_found_by_a_hash_that_was_noted_elsewhere(company: Company) -> None:
    """Would catch a noted hash that is not looked for, and one that a record which has gone on has no more."""
    noted = verify(company.home).head
    company.decisions.write("sent", run="r", bytes=4)
    assert verify(company.home, [noted, noted[:16]]).head == company.decisions.head().head != noted
    path = company.decisions.path
    lines = rewritten(7)(whole_lines(path))
    path.write_bytes(b"".join(lines))
    with sqlite3.connect(company.home / "steps.sqlite") as file:
        file.execute("UPDATE log SET bytes = ?, head = ?", (sum(map(len, lines)), hash_of(lines[-1])))
    file.close()
    assert verify(company.home).lines == len(lines)
    words = ["agent", "log", str(company.home), "--verify", "--json"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    done = CliRunner().invoke(cli, [*words, "--seen", noted])
    assert done.exit_code == 3
    assert noted in json.loads(done.stdout)["says"]
    for wrong in ("", noted[:15], noted.upper()):
        assert isinstance(CliRunner().invoke(cli, [*words, "--seen", wrong]).exception, InputError)


@pytest.mark.parametrize("field", ["row", "head"])
@pytest.mark.parametrize("value", [None, "x", 1.5, -1, 10**30])
def test_a_line_of_a_charge_that_says_no_row_is_found_by_its_number(
    company: Company, field: str, value: str | float | None
) -> None:
    """Would catch a check that ends with a traceback where somebody has written a chain of his own."""
    lines = whole_lines(company.decisions.path)
    entry = json.loads(lines[-2])
    told = {k: v for k, v in entry.items() if k not in ("line", "time", "what", "before", "hash", field)}
    told |= {} if value is None else {field: value}
    lines = [*lines[:-2], line_of(entry["line"], entry["time"], entry["what"], told, entry["before"])]
    company.decisions.path.write_bytes(b"".join(lines))
    with sqlite3.connect(company.home / "steps.sqlite") as file:
        file.execute("UPDATE log SET lines = lines - 1, head = ?", (hash_of(lines[-1]),))
    file.close()
    with pytest.raises(LedgerError, match=f"line {len(lines)}"):
        verify(company.home)


@given(place=st.integers(0, 10_000), byte=st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_byte_can_be_changed_unnoticed(company: Company, place: int, byte: int) -> None:
    """Would catch a field outside of the hash, or JSON that reads alike and is written otherwise."""
    path = company.decisions.path
    whole = path.read_bytes()
    bent = bytearray(whole)
    bent[place % len(whole)] ^= byte
    try:
        path.write_bytes(bent)
        with pytest.raises(LedgerError):
            verify(company.home)
    finally:
        path.write_bytes(whole)


def test_a_record_that_is_cut_off_or_lost_stops_the_company(company: Company) -> None:
    """Would catch an agent that goes on after its record was truncated, and so covers the gap with new lines."""
    path = company.decisions.path
    whole = path.read_bytes()
    lines = whole_lines(path)
    for content in (b"".join(lines[:-1]), lines[0], b"", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LedgerError, match="cut short"):
            company.decisions.write("asked", run="r2")
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"bytes": 2', b'"bytes": 3'))
    with pytest.raises(LedgerError, match="line 8 was changed"):
        company.decisions.write("asked", run="r2")
    path.write_bytes(whole)
    company.decisions.write("asked", run="r2")
    assert verify(company.home).lines == 9


def test_a_crash_while_a_line_is_written_loses_no_line_and_stops_nobody(company: Company) -> None:
    """Would catch a torn line that breaks the chain for good, and a whole one that is written over."""
    path = company.decisions.path
    copy = company.home.parent / "steps"
    shutil.copy(company.steps.path, copy)
    company.decisions.write("asked", run="unrecorded")
    shutil.copy(copy, company.steps.path)  # killed after the line, before its head was kept
    with path.open("ab") as file:
        file.write(b'{"line": 10, "time')  # and another one in the middle of a line
    assert verify(company.home).beyond == 1
    company.decisions.write("asked", run="next")
    entries = check_chain(path, whole_lines(path))
    assert [entry.get("run") for entry in entries[-2:]] == ["unrecorded", "next"]
    assert verify(company.home).beyond == 0


def test_a_crash_after_the_line_of_a_charge_does_not_write_it_again(company: Company) -> None:
    """Would catch a row of the ledger that the record tells of twice, which nobody could mend afterwards."""
    before = company.steps.seen_log()
    charge(company, 3)
    told = company.steps.seen_log().rows
    with company.steps.log_head() as kept:  # killed before this was kept
        for field in fields(before):
            setattr(kept, field.name, getattr(before, field.name))
    assert company.steps.seen_log().rows == told - 1
    charge(company, 4)
    found = verify(company.home)
    assert (found.rows, found.unlogged, found.beyond) == (told + 1, 0, 0)


def test_an_older_copy_of_the_steps_is_seen_by_the_lines_that_it_does_not_know(company: Company) -> None:
    """Would catch steps that are taken twice: the ledger alone tells of an older copy after many rows only."""
    copy = company.home.parent / "steps"
    shutil.copy(company.steps.path, copy)
    for number in range(3, 5):
        charge(company, number)
        company.decisions.write_all(("trained", {"run": "r"}), ("sent", {"run": "r"}))
    shutil.copy(copy, company.steps.path)
    with pytest.raises(LedgerError, match="an older copy"):
        verify(company.home)
    with pytest.raises(LedgerError, match="an older copy"):
        company.decisions.check()
    company.accept_ledger()
    company.decisions.check()
    assert verify(company.home).beyond == 0


def test_older_copies_of_both_records_are_seen_by_the_ledger(company: Company) -> None:
    """Would catch decisions that are lost without a trace, since what is left agrees with itself."""
    records = (company.steps.path, company.decisions.path)
    copies = [shutil.copy(path, company.home.parent) for path in records]
    company.decisions.write("denied", run="r2", by="ada", why="")
    charge(company, 3)
    charge(company, 4)
    for copy, path in zip(copies, records, strict=True):
        shutil.copy(copy, path)
    with company.ledger() as ledger:
        assert len(ledger.rows()) == 5
    for check in (lambda: verify(company.home), lambda: company.decisions.check(5)):
        with pytest.raises(LedgerError, match="older copies"):
            check()
    company.decisions.check(4)  # one row is what a crash leaves
    company.accept_ledger()
    assert verify(company.home).unlogged == 0


def test_a_line_added_by_hand_after_the_end_is_refused(company: Company) -> None:
    with company.decisions.path.open("ab") as file:
        file.write(line_of(9, 0.0, "approved", {"run": "r"}, GENESIS))
    with pytest.raises(LedgerError, match="does not follow"):
        company.decisions.write("asked", run="r")


def test_the_ledger_and_the_record_show_what_is_missing_in_the_other(
    company: Company, tmp_path: Path
) -> None:
    """Would catch a record that verifies beside another ledger, or beside one with charges it does not tell of."""
    charge(company, 3, logged=False)  # killed between charge and line
    assert verify(company.home).unlogged == 1
    charge(company, 4)
    entries = check_chain(company.decisions.path, whole_lines(company.decisions.path))
    assert [entry["row"] for entry in entries if entry["what"] == "charged"] == [1, 2, 3, 4, 5]
    assert verify(company.home).unlogged == 0
    for number in range(5, 15):
        charge(company, number, logged=False)
    with pytest.raises(LedgerError, match="lines are missing"):
        verify(company.home)
    other = new_company(tmp_path / "other")
    for number in range(20):
        charge(other, number)
    shutil.copy(other.home / "ledger.sqlite", company.home / "ledger.sqlite")
    with pytest.raises(LedgerError, match="another row"):
        verify(company.home)


def test_after_a_loss_the_record_goes_on_and_says_what_is_lost(company: Company) -> None:
    """Would catch a company that can never decide again, and an acceptance that leaves no trace."""
    path = company.decisions.path
    path.rename(path.with_suffix(".old"))
    company.accept_ledger()
    (begun,) = check_chain(path, whole_lines(path))
    assert (begun["what"], begun["rows"], begun["lost"]) == ("begun", 3, 8)
    charge(company, 3)
    assert verify(company.home).lines == 2


def write_many(home: Path, number: int) -> None:
    decisions = Decisions(home, Steps(home / STEPS_FILE))
    for i in range(25):
        decisions.write("asked", run=f"{number}-{i}")


def test_a_home_of_an_older_version_begins_a_record_with_its_ledger_as_it_is(tmp_path: Path) -> None:
    """Would catch an update after which a company refuses everything, and a record that lies there taken for none."""
    made = new_company(tmp_path / "acme")
    charge(made, 0)
    made.decisions.path.unlink()
    with sqlite3.connect(made.steps.path) as file:
        file.execute("DROP TABLE log")
    file.close()
    charge(made, 1)
    entries = check_chain(made.decisions.path, whole_lines(made.decisions.path))
    assert [(entry["what"], entry.get("rows", entry.get("row"))) for entry in entries] == [("begun", 2)]
    charge(made, 2)
    assert verify(made.home).lines == 2
    with sqlite3.connect(made.steps.path) as file:
        file.execute("DROP TABLE log")
    file.close()
    with pytest.raises(LedgerError, match="does not know of it"):
        made.decisions.write("asked", run="r")


def test_two_processes_of_one_home_write_one_chain(company: Company) -> None:
    """Would catch two lines of one number when an agent and a person decide at once."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(company.home, n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    entries = check_chain(company.decisions.path, whole_lines(company.decisions.path))
    assert {entry["run"] for entry in entries[8:]} == {f"{n}-{i}" for n in range(2) for i in range(25)}
    assert verify(company.home).lines == 58


def deployed(c: Coordinator) -> Path:
    """The home of company-0, which is no invented one any more, and so keeps a record."""
    home = c.run.companies / "company-0"
    policy = home / "policy.toml"
    kept = [line for line in policy.read_text().splitlines() if not line.startswith("simulation_seed")]
    policy.write_text("\n".join(kept))
    return home


def test_an_invented_company_keeps_no_record(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a simulation that is slowed down by forcing lines to disk that nobody reads."""
    c = Coordinator(prepare(small, tmp_path / "run"))
    c.trained(c.session())
    assert not list(c.run.companies.glob("*/decisions.jsonl"))


def test_a_round_is_on_record_and_nothing_private_or_of_an_error_stands_in_it(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a decision that leaves no line, a digest of something else, and an exception's text."""
    c = Coordinator(prepare(small, tmp_path / "run"))
    home = deployed(c)
    session = c.session()
    c.trained(session)
    signatures = c.signatures(session, dict.fromkeys(range(1, 6), session.cohort))
    assert refused(c.unmask(1, session.digest(), signatures)) is None
    policy = home / "policy.toml"
    policy.write_text("minimum_noise_multiplier = 99.0\n" + "\n".join(
        line for line in policy.read_text().splitlines() if not line.startswith("minimum_noise")
    ))  # fmt: skip
    join = JoinRequest(c.plan, c.model.shared).to_record()
    assert refused(c.ask(1, JOIN, join)) == "privacy"

    entries = check_chain(home / "decisions.jsonl", whole_lines(home / "decisions.jsonl"))
    told = [(entry["what"], entry.get("by"), entry.get("why", entry.get("message"))) for entry in entries]
    assert told == [
        ("begun", None, None),
        ("policy", None, None),
        ("asked", None, None),
        ("joined", "policy", None),
        ("charged", None, None),
        ("trained", None, None),
        ("sent", None, "train.block"),
        ("sent", None, "query.unmask"),
        ("policy", None, None),
        ("asked", None, None),
        ("refused", "policy", "minimum_noise_multiplier"),
    ]
    assert entries[2]["terms"] == c.plan.terms_digest().hex()
    assert {entry["run"] for entry in entries if "run" in entry} == {c.plan.run}
    assert verify(home).rows == 1
    done = CliRunner().invoke(cli, ["agent", "log", str(home), "--json"])
    assert json.loads(done.stdout)["entries"] == entries


def test_a_record_that_cannot_go_on_stops_a_round_before_its_charge(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a company that charges its ledger and only then finds that it cannot write that down."""
    c = Coordinator(prepare(small, tmp_path / "run"))
    home = deployed(c)
    request = c.train_request(c.session()).to_record()
    path = home / "decisions.jsonl"
    path.write_bytes(b"".join(whole_lines(path)[:-1]))
    assert refused(c.ask(1, TRAIN, request)) == "privacy"
    assert c.charges() == 0


def test_a_request_that_waits_is_on_record_once_and_then_what_a_person_decided(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch a coordinator that asks every few seconds and fills the disk, and an approval without a line."""
    c = Coordinator(prepare(small, tmp_path / "run"))
    home = deployed(c)
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace('approval = "never"', 'approval = "first"'))
    join = JoinRequest(c.plan, c.model.shared).to_record()
    for _ in range(4):
        assert refused(c.ask(1, JOIN, join)) == "pending"
    done = CliRunner().invoke(cli, ["agent", "approve", str(home), c.plan.run, "--json"])
    assert done.exit_code == 0, done.exception
    assert refused(c.ask(1, JOIN, join)) is None
    entries = check_chain(home / "decisions.jsonl", whole_lines(home / "decisions.jsonl"))
    assert [entry["what"] for entry in entries] == ["begun", "policy", "asked", "approved", "joined"]
    assert entries[3]["by"]


def test_the_text_of_an_error_and_what_it_quotes_stay_out(small: SimulationSettings, tmp_path: Path) -> None:
    c = Coordinator(prepare(small, tmp_path / "run"))
    home = deployed(c)
    request = c.train_request(c.session()).to_record()
    (home / "data.npz").write_text("patient 4711")
    for _ in range(3):
        assert refused(c.ask(1, TRAIN, request)) == "no_data"
    text = (home / "decisions.jsonl").read_text()
    assert "4711" not in text
    assert "Error" not in text
    refusals = [line for line in text.splitlines() if '"refused"' in line]
    assert len(refusals) == 1  # the same one within a minute is written once
    assert '"by": "machine", "why": "no_data"' in refusals[0]
    assert os.stat(home / "decisions.jsonl").st_mode & 0o077 == 0
