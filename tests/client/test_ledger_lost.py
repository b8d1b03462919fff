"""A ledger that is lost, cut short, put back or swapped is refused by name until the company has spoken."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from support.commands import run_code
from support.coordinating import Coordinator
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.policy import Policy, load_policy
from fedblocks.client.replay_guard import Steps
from fedblocks.errors import InputError, LedgerError, ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.ledger_file import MOST_UNSEEN, read_ledger
from fedblocks.protocol.messages import JOIN, TRAIN, JoinRequest, refused
from fedblocks.settings import DataKind, SimulationSettings

TERMS = Terms(GaussianSteps(sampling_rate=0.02, noise_multiplier=5.0, steps=20, dimension=100), 100)


def company_at(home: Path, name: str = "acme") -> Company:
    """A company with a ledger, as it starts out."""
    home.mkdir(mode=0o700)
    kind = DataKind(inputs=(8,), targets=(), target_classes=2)
    policy = Policy(company=name, epsilon_ceiling=8.0, delta=1e-5, data=kind)
    (home / "policy.toml").write_text(tomli_w.dumps(policy.model_dump(exclude_none=True)))
    (home / "policy.toml").chmod(0o600)
    company = Company(home, policy)
    company.create_ledger()
    return company


def charge(company: Company, *rounds: int) -> None:
    with company.ledger() as ledger:
        for n in rounds:
            ledger.charge(run="r", round=n, block="b", release_id=f"id-{n}", terms=TERMS)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def company(tmp_path: Path) -> Company:
    """Three releases have been charged."""
    company = company_at(tmp_path / "home")
    charge(company, 0, 1, 2)
    return company


def deleted(company: Company, tmp_path: Path) -> None:
    (company.home / "ledger.sqlite").unlink()


def shortened(company: Company, tmp_path: Path) -> None:
    connection = sqlite3.connect(company.home / "ledger.sqlite")
    connection.execute("DROP TRIGGER no_delete")
    connection.execute("DELETE FROM releases WHERE seq = 3")
    connection.commit()
    connection.close()


def emptied(company: Company, tmp_path: Path) -> None:
    """Deleted, and made again behind the back of the company's own record."""
    deleted(company, tmp_path)
    shutil.copy(company_at(tmp_path / "twin").home / "ledger.sqlite", company.home)


def older(company: Company, tmp_path: Path) -> None:
    copy = shutil.copy(company.home / "ledger.sqlite", tmp_path)
    charge(company, 3)
    shutil.copy(copy, company.home)


def diverging(company: Company, tmp_path: Path) -> None:
    """As long as the real one or longer, but of other releases."""
    twin = company_at(tmp_path / "twin")
    charge(twin, 10, 11, 12, 13)
    shutil.copy(twin.home / "ledger.sqlite", company.home)


def of_another(company: Company, tmp_path: Path) -> None:
    other = company_at(tmp_path / "twin", "other")
    charge(other, 0, 1, 2)
    shutil.copy(other.home / "ledger.sqlite", company.home)


def steps_deleted(company: Company, tmp_path: Path) -> None:
    (company.home / "steps.sqlite").unlink()


def steps_of_before(company: Company, tmp_path: Path) -> None:
    """As a fedblocks wrote it that kept nothing of the ledger in it."""
    connection = sqlite3.connect(company.home / "steps.sqlite")
    connection.execute("DROP TABLE ledger")
    connection.close()


def steps_without_a_count(company: Company, tmp_path: Path) -> None:
    connection = sqlite3.connect(company.home / "steps.sqlite")
    connection.execute("UPDATE ledger SET rows = NULL")
    connection.commit()
    connection.close()


FAULTS = {
    deleted: "ledger.sqlite is missing: restore it",
    shortened: "has 2 rows, but 3 were charged here",
    emptied: "has 0 rows, but 3 were charged here",
    older: "has 3 rows, but 4 were charged here",
    diverging: "differs before row 4, but 3 were charged here",
    of_another: "belongs to 'other'",
    steps_deleted: "steps.sqlite is missing",
    steps_of_before: "ledger accept",
    steps_without_a_count: "says nothing of the ledger",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_is_refused_by_name_and_restoring_it_is_enough(
    company: Company, tmp_path: Path, fault: Callable[[Company, Path], None]
) -> None:
    """Would catch a ledger that starts again at zero, or where a copy left it, and says nothing."""
    fault_path = company.home / ("steps.sqlite" if "steps" in fault.__name__ else "ledger.sqlite")
    good = fault_path.read_bytes()
    fault(company, tmp_path)
    for use in (lambda: charge(company, 9), lambda: company.ledger().__enter__().spent()):
        with pytest.raises(LedgerError, match=FAULTS[fault]):
            use()
    if fault is not older:
        fault_path.write_bytes(good)
        fault_path.chmod(0o600)
        charge(company, 9)
        assert len(read_ledger(company.home / "ledger.sqlite").rows) == 4


@pytest.mark.parametrize("fault", [shortened, older, diverging], ids=lambda fault: fault.__name__)
def test_commands_that_read_it_say_so_too(
    company: Company, tmp_path: Path, fault: Callable[[Company, Path], None]
) -> None:
    fault(company, tmp_path)
    assert isinstance(invoke("ledger", "show", company.home).exception, LedgerError)
    verified = invoke("ledger", "verify", company.home, "--json")
    assert verified.exit_code == 3
    assert "charged here" in json.loads(verified.stdout)["ledgers"][0]["says"]


def test_the_company_can_say_that_it_counts_from_zero(company: Company, tmp_path: Path) -> None:
    assert isinstance(invoke("ledger", "create", company.home).exception, InputError)
    assert len(read_ledger(company.home / "ledger.sqlite").rows) == 3
    deleted(company, tmp_path)
    done = invoke("ledger", "create", company.home)
    assert done.exit_code == 0, done.exception
    assert "whatever it spent before is not counted" in done.output
    charge(company, 9)
    assert len(read_ledger(company.home / "ledger.sqlite").rows) == 1


@pytest.mark.parametrize("fault", [shortened, emptied, older, diverging], ids=lambda fault: fault.__name__)
def test_the_company_can_say_that_it_counts_from_what_is_there(
    company: Company, tmp_path: Path, fault: Callable[[Company, Path], None]
) -> None:
    fault(company, tmp_path)
    rows = len(read_ledger(company.home / "ledger.sqlite").rows)
    done = invoke("ledger", "accept", company.home)
    assert done.exit_code == 0, done.exception
    assert "counts from epsilon=" in done.output
    charge(company, 20)
    assert len(read_ledger(company.home / "ledger.sqlite").rows) == rows + 1


def test_nothing_is_made_at_the_first_use_of_a_home(tmp_path: Path) -> None:
    """Would catch a company whose whole record is deleted, and which goes on as if it were new."""
    company = company_at(tmp_path / "home")
    for name in ("ledger.sqlite", "steps.sqlite"):
        (company.home / name).unlink()
    for use in (lambda: charge(company, 0), lambda: company.steps.take("trained", b"x")):
        with pytest.raises(LedgerError, match="is missing"):
            use()
    assert sorted(path.name for path in company.home.iterdir()) == ["decisions.jsonl", "policy.toml"]
    assert isinstance(invoke("ledger", "accept", company.home).exception, InputError)
    assert invoke("ledger", "create", company.home).exit_code == 0
    charge(company, 0)


def test_runs_whose_steps_are_lost_are_over(company: Company, tmp_path: Path) -> None:
    """Would catch a second cohort in a run that had one: two sums that differ by a company can be subtracted."""
    company.steps.take("cohort", b"r", value=b"first", code="bad_session")
    steps_deleted(company, tmp_path)
    assert invoke("ledger", "accept", company.home).exit_code == 0
    for cohort in (b"first", b"second"):
        with pytest.raises(ProtocolError, match="bad_session"):
            company.steps.take("cohort", b"r", value=cohort, code="bad_session")
    company.steps.take("cohort", b"new", value=b"first", code="bad_session")
    # With the file in place, accepting a ledger forgets no step.
    assert invoke("ledger", "accept", company.home).exit_code == 0
    company.steps.take("cohort", b"new", value=b"first", code="bad_session")


def test_one_that_is_older_than_the_ledger_is_refused_and_a_crash_is_not(
    company: Company, tmp_path: Path
) -> None:
    """Would catch a ledger that is taken however much longer it is than was seen, or never."""
    copy = shutil.copy(company.home / "steps.sqlite", tmp_path)
    charge(company, *range(3, 2 + MOST_UNSEEN))
    shutil.copy(copy, company.home)
    charge(company, 50)  # with this one, as many as may be written and not seen
    assert company.steps.seen()[0] == MOST_UNSEEN + 3
    charge(company, 51)
    shutil.copy(copy, company.home)
    for use in (lambda: charge(company, 52), lambda: company.ledger().__enter__().spent()):
        with pytest.raises(LedgerError, match=r"but only 3 were seen here.*ledger accept"):
            use()
    assert isinstance(invoke("ledger", "show", company.home).exception, LedgerError)
    assert len(read_ledger(company.home / "ledger.sqlite").rows) == MOST_UNSEEN + 4
    assert invoke("ledger", "accept", company.home).exit_code == 0
    charge(company, 52)


def test_an_older_copy_of_the_steps_gets_no_second_set_of_survivors_signed(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """The attack: steps.sqlite alone is put back from before a set was signed, and the state from before it too.

    Would catch phases that look at the steps and not at the ledger, and a company that accepts the ledger and goes
    on with sums whose steps are forgotten, though the rows of their run were seen.
    """
    app = Coordinator(prepare(small, tmp_path / "run"))
    home = app.run.companies / "company-0"
    session, names = app.session(), tuple(f"company-{i}" for i in range(5))
    app.trained(session)
    before, copy = app.state(1), shutil.copy(home / "steps.sqlite", tmp_path)
    assert refused(app.confirm(1, session.digest(), names)) is None
    small_terms = Terms(GaussianSteps(sampling_rate=1e-4, noise_multiplier=50.0, steps=1, dimension=100), 100)
    with Company(home, load_policy(home / "policy.toml")).ledger() as ledger:
        for n in range(MOST_UNSEEN + 1):
            ledger.charge(run="elsewhere", round=n, block="b", release_id=f"id-{n}", terms=small_terms)
    shutil.copy(copy, home)
    app.put_back(1, before)
    assert refused(app.confirm(1, session.digest(), names[:4])) == "privacy"
    assert invoke("ledger", "accept", home).exit_code == 0
    assert refused(app.confirm(1, session.digest(), names[:4])) == "bad_session"
    assert refused(app.keys(session)[1]) == "bad_session"


def test_a_lost_record_of_steps_gets_no_second_set_of_survivors_signed(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """As above, where the file is gone: would catch runs that are over for new sums, and not for those begun."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    session, home = app.session(), app.run.companies / "company-0"
    app.trained(session)
    (home / "steps.sqlite").unlink()
    assert invoke("ledger", "accept", home).exit_code == 0
    assert refused(app.confirm(1, session.digest(), session.cohort)) == "bad_session"


def test_what_was_seen_never_goes_back(company: Company) -> None:
    """Would catch a slow process that writes over what a quicker one has seen since: a copy would then be taken."""
    company.steps.saw(2, "an earlier head")
    _, head = company.steps.seen()
    assert company.steps.seen()[0] == 3
    company.steps.saw(3, "another head")
    assert company.steps.seen() == (3, head)
    company.steps.saw(4, "a later head")
    assert company.steps.seen() == (4, "a later head")


def test_an_acceptance_that_was_interrupted_forgets_no_lost_steps(company: Company) -> None:
    """Would catch a new file, empty after a crash, that passes for the one whose steps are known."""
    steps_deleted(company, company.home)
    (company.home / "steps.sqlite").touch(mode=0o600)
    assert invoke("ledger", "accept", company.home).exit_code == 0
    with pytest.raises(ProtocolError, match="bad_session"):
        company.steps.take("cohort", b"r", value=b"second", code="bad_session")


def test_a_coordinator_gets_no_release_out_of_a_lost_ledger(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """The attack: the file is lost in the middle of a run. Neither training nor joining goes on, at any phase."""
    app = Coordinator(prepare(small, tmp_path / "run"))
    request = app.train_request(app.session())
    (app.run.companies / "company-0" / "ledger.sqlite").unlink()
    assert refused(app.ask(1, TRAIN, request.to_record())) == "privacy"
    assert refused(app.ask(1, JOIN, JoinRequest(app.plan, app.model.shared).to_record())) == "privacy"
    assert not (app.run.companies / "company-0" / "ledger.sqlite").exists()


# Charges releases in a home until it is killed: at the moment named, after so many charges.
CHARGER = """
import os, signal, sys
from pathlib import Path
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.client.replay_guard import Steps
from fedblocks.privacy.composition import Terms
from fedblocks.privacy.events import GaussianSteps
home, moment, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
saw = Steps.saw

def saw_or_die(self, rows, head):
    if moment == "row written" and rows > after:
        os.kill(os.getpid(), signal.SIGKILL)
    saw(self, rows, head)
    if moment == "row seen" and rows > after:
        os.kill(os.getpid(), signal.SIGKILL)

Steps.saw = saw_or_die
event = GaussianSteps(sampling_rate=0.02, noise_multiplier=5.0, steps=20, dimension=100)
company = Company(home, load_policy(home / "policy.toml"))
for n in range(after + 5):
    with company.ledger() as ledger:
        ledger.charge(run="r", round=n, block="b", release_id=f"id-{n}", terms=Terms(event, 100))
    print(n, flush=True)
"""


def killed(home: Path, moment: str, after: int) -> list[int]:
    """The rounds that a process has made before it was killed."""
    done = run_code(CHARGER, home, moment, str(after))
    assert done.exit_code == -signal.SIGKILL, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("moment", ["row written", "row seen"])
def test_a_process_killed_between_the_two_records_neither_forgets_nor_locks_out(
    tmp_path: Path, moment: str
) -> None:
    """Would catch a head that is noted before the row (locked out) or a release that is made before it is noted."""
    company = company_at(tmp_path / "home")
    made = killed(company.home, moment, after=2)
    rows = read_ledger(company.home / "ledger.sqlite").rows
    noted, _ = company.steps.seen()
    assert (len(made), len(rows), noted) == (2, 3, 2 if moment == "row written" else 3)
    # The same release comes again, as after a restart: from then on no copy without it is taken.
    backup = shutil.copy(company.home / "ledger.sqlite", tmp_path)
    with company.ledger() as ledger:
        assert ledger.charge(run="r", round=2, block="b", release_id="id-2", terms=TERMS).repeated
    assert company.steps.seen()[0] == 3
    charge(company, 3)
    shutil.copy(backup, company.home)
    with pytest.raises(LedgerError, match=r"has \d rows, but 4 were charged here"):
        charge(company, 4)


@pytest.mark.slow
def test_processes_that_charge_at_once_do_not_take_each_other_for_a_fault(tmp_path: Path) -> None:
    """Would catch a row that is seen by one process and taken for lost by another."""
    company = company_at(tmp_path / "home")
    code = CHARGER.replace('f"id-{n}"', 'f"{os.getpid()}-{n}"')
    with_one = [sys.executable, "-c", code, str(company.home), "never", "5"]
    processes = [subprocess.Popen(with_one, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    copy = read_ledger(company.home / "ledger.sqlite")
    assert company.steps.seen() == (30, copy.head) == (len(copy.rows), copy.head)


def test_a_row_that_is_added_while_another_reads_is_no_fault(company: Company) -> None:
    """Would catch a head that is read after the rows: whatever came in between would look lost."""

    class Busy(Steps):
        def seen(self) -> tuple[int, str]:
            charge(company, *([3] if super().seen()[0] == 3 else []))
            return super().seen()

    witness = Busy(company.home / "steps.sqlite")
    with Ledger.open(company.home / "ledger.sqlite", "acme", 8.0, 1e-5, witness=witness) as ledger:
        assert len(ledger.rows()) == 4


def test_an_interrupted_creation_can_be_done_again(tmp_path: Path) -> None:
    """A crash between the ledger and the record of it: an empty ledger, accepted as such."""
    company = company_at(tmp_path / "home")
    for name in ("ledger.sqlite", "steps.sqlite"):
        (company.home / name).unlink()
    (company.home / "steps.sqlite").touch()  # made, and nothing in it yet
    with pytest.raises(LedgerError, match="ledger create"):
        charge(company, 0)
    company.create_ledger()
    charge(company, 0)
