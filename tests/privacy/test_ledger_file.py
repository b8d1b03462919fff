"""Ledgers of every kind of release and of older versions; reading without touching; figures checked twice."""

import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest

from fedblocks.errors import BudgetExceeded, InputError, LedgerError
from fedblocks.privacy import composition, ledger_file
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.composition import RENYI, RUNS, RenyiFilter, Run, Terms, order_for, run_epsilon
from fedblocks.privacy.events import (
    ADD_REMOVE,
    REPLACE_ONE,
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    SkellamSteps,
    TruncatedGaussianSteps,
)
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.ledger_room import remaining
from fedblocks.privacy.verification import independent_bounds

DELTA = 1e-5
GAUSSIAN = GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20, dimension=900)
EPOCHS = EpochGaussian(noise_multiplier=8.0, epochs=2, dimension=900)
CAPPED = TruncatedGaussianSteps(
    sampling_rate=0.01, noise_multiplier=1.0, steps=30, examples=10_000, batch_cap=140, dimension=900
)
SKELLAM = SkellamSteps(sampling_rate=0.1, steps=10, l2=1000.0, l1=30_000.0, variance=4e6, beta=2.0**-40)
FIXED = FixedSizeGaussianSteps(examples=10_000, batch_size=50, noise_multiplier=6.0, steps=10, dimension=900)

# As fedblocks wrote it before ledgers had an adjacency of their own.
VERSION_1 = """
CREATE TABLE ledger (company TEXT NOT NULL, delta REAL NOT NULL) STRICT;
INSERT INTO "ledger" VALUES('acme',1.0e-05);
CREATE TABLE releases (
    seq INTEGER PRIMARY KEY, company TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    block TEXT NOT NULL, release_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, unit TEXT NOT NULL,
    adjacency TEXT NOT NULL,
    delta REAL NOT NULL, epsilon_before REAL NOT NULL, epsilon_after REAL NOT NULL, time REAL NOT NULL,
    hash TEXT NOT NULL
) STRICT;
INSERT INTO "releases" VALUES(1,'acme','r',0,'b0','id-0',
    '{"mechanism": "poisson_subsampled_gaussian", "version": 1, "sampling_rate": 0.02, "noise_multiplier": 1.5, "steps": 20}',
    'one example of one company','add or remove one example',1.0e-05,0.0,3.15774079854446498849e-01,1234.5,
    'b6b25a265c2b2e558ab2ff9a369cc9e5ba2bd03306a0dedaf806bc95d1f993b2');
INSERT INTO "releases" VALUES(2,'acme','r',1,'b1','id-1',
    '{"mechanism": "poisson_subsampled_gaussian", "version": 1, "sampling_rate": 0.1, "noise_multiplier": 4.0, "steps": 5}',
    'one example of one company','add or remove one example',1.0e-05,3.15774079854446498849e-01,
    3.70513335553211031747e-01,1234.5,'482e98a97dfeb5314fb3157dafe573a6f2f6ea82a3181e468bba4781431219d3');
PRAGMA application_id = 1717718119;
PRAGMA user_version = 1;
"""  # noqa: E501


def opened(path: Path, adjacency: str = ADD_REMOVE, company: str = "acme", rule: str = RUNS) -> Ledger:
    return Ledger.open(
        path, company, epsilon_ceiling=50.0, delta=DELTA, clock=lambda: 1234.5, adjacency=adjacency, rule=rule
    )


def charge(ledger: Ledger, n: int, event: Event, block: str = "b0", planned: int = 25) -> None:
    """A release of the run of its kind."""
    run = f"{event.NAME} {event.steps}"
    ledger.charge(run=run, round=n, block=block, release_id=f"id-{n}", terms=Terms(event, planned))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def content(path: Path) -> dict[str, str]:
    """Every file of the folder, by what is in it."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir()}


@pytest.mark.parametrize(
    "events",
    [[GAUSSIAN, CAPPED, EPOCHS, GAUSSIAN], [SKELLAM], [GAUSSIAN, CAPPED, SKELLAM, SKELLAM]],
    ids=["pld", "rdp", "both"],
)
def test_every_kind_is_charged_by_its_account(path: Path, events: list[Event]) -> None:
    with opened(path) as ledger:
        begun: list[Event] = []
        for n, event in enumerate(events):
            charge(ledger, n, event)
            begun = begun if event in begun else [*begun, event]
            costs = [run_epsilon(each.times(25), DELTA, k + 1) for k, each in enumerate(begun)]
            assert ledger.rows()[-1].epsilon_after == sum(costs)
        assert [row.event for row in ledger.rows()] == events
        spent = ledger.spent()
        accountants = {SKELLAM: "RDP", GAUSSIAN: "PLD"}
        assert spent.accountant == " + ".join(sorted({accountants[e] for e in events if e in accountants}))
        assert all(event.mechanism in spent.mechanism for event in events)
        ledger.verify()
    assert read_ledger(path).events == events


def test_what_does_not_compose_is_refused_and_writes_nothing(path: Path) -> None:
    with opened(path.with_name("renyi.sqlite"), rule=RENYI) as ledger:
        charge(ledger, 0, SKELLAM)
        with pytest.raises(BudgetExceeded, match="to inf"):
            charge(ledger, 1, CAPPED)
        assert len(ledger.rows()) == 1
    with opened(path) as ledger:
        charge(ledger, 0, CAPPED)
        for use in (
            lambda event: remaining(read_ledger(path), event, 50.0),
            lambda event: ledger.check_plan("r", Terms(event, 1)),
            lambda e: charge(ledger, 1, e),
        ):
            with pytest.raises(LedgerError, match=r"'acme'.*adjacency is 'add or remove one example'"):
                use(FIXED)
        assert len(ledger.rows()) == 1


def test_adjacency_is_fixed_at_creation(path: Path) -> None:
    with opened(path, REPLACE_ONE) as ledger:
        assert ledger.spent().adjacency == REPLACE_ONE
        charge(ledger, 0, FIXED)
        assert ledger.rows()[0].adjacency == ledger.spent().adjacency == REPLACE_ONE
        with pytest.raises(LedgerError, match="do not add up"):
            charge(ledger, 1, GAUSSIAN)
        ledger.verify()
    with pytest.raises(LedgerError, match="fixed when a ledger is created"):
        opened(path)
    assert read_ledger(path).header.adjacency == REPLACE_ONE
    with pytest.raises(InputError, match=r"^adjacency="):
        opened(path, "swap two examples")


@pytest.mark.parametrize("statement", ["UPDATE ledger SET adjacency = ?", "PRAGMA user_version = 2 -- ?"])
def test_another_adjacency_does_not_fit_the_chain(path: Path, statement: str) -> None:
    with opened(path, REPLACE_ONE) as ledger:
        charge(ledger, 0, FIXED)
    connection = sqlite3.connect(path)
    connection.execute(statement.replace("?", f"'{ADD_REMOVE}'"))
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="row 1: the content does not fit its hash"):
        read_ledger(path)
    with pytest.raises(LedgerError):
        opened(path)


@pytest.mark.parametrize("delta", [-1.0, 0.0, 1.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("version", [1, 3])
def test_a_delta_that_no_ledger_has_is_damage(path: Path, delta: float, version: int) -> None:
    """Also of a ledger without rows, whose chain says nothing, and of one whose accountant would be made of it."""
    if version == 3:
        opened(path).close()
    connection = sqlite3.connect(path)
    if version == 1:
        connection.executescript(VERSION_1)
    connection.execute("UPDATE ledger SET delta = ?", (delta,))
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="does not say whose it is"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="does not say whose it is"):
        opened(path)


def test_an_event_nested_beyond_all_measure_is_damage_even_where_the_chain_fits(path: Path) -> None:
    with opened(path) as ledger:
        charge(ledger, 0, GAUSSIAN)
        columns, genesis = ledger._store.header.columns, ledger._store.header.genesis
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_update")
    connection.execute("UPDATE releases SET event = ?", ("[" * 100_000,))
    row = connection.execute(f"SELECT {', '.join(columns)} FROM releases").fetchone()
    connection.execute("UPDATE releases SET hash = ?", (ledger_file.digest(genesis, row),))
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="row 1: event"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="row 1: event"):
        opened(path)


def test_a_ledger_of_version_1_is_read_verified_and_continued(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    head = "482e98a97dfeb5314fb3157dafe573a6f2f6ea82a3181e468bba4781431219d3"
    assert read_ledger(path).head == head
    with opened(path) as ledger:
        assert ledger.head() == head
        assert ledger.verify().rows == 2
        old = ledger.spent()
        assert old.epsilon > ledger.rows()[-1].epsilon_after  # what held for plans fixed beforehand alone
        assert "Renyi filter at order 3.9" in str(old)
        for n in range(2, 5):
            charge(ledger, n, GAUSSIAN, planned=2)  # nothing is pinned there, every release is charged
        assert ledger.verify().rows == 5
        assert ledger.rows()[2].epsilon_before == old.epsilon
        with pytest.raises(BudgetExceeded, match="to inf"):
            charge(ledger, 9, CAPPED)
        assert old.epsilon == RenyiFilter(DELTA, order_for(8.0, DELTA)).epsilon(
            [Run(Terms(event, 1), 1) for event in read_ledger(path).events[:2]]
        )
    assert read_ledger(path).header.version == 1
    with pytest.raises(LedgerError, match="fixed when a ledger is created"):
        opened(path, REPLACE_ONE)


def test_a_ledger_of_version_2_is_read_verified_and_continued(path: Path) -> None:
    """As version 1, with an adjacency of its own in file and hash: made of a version 1 by writing its hashes anew."""
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.execute(f"ALTER TABLE ledger ADD COLUMN adjacency TEXT NOT NULL DEFAULT '{ADD_REMOVE}'")
    connection.execute("PRAGMA user_version = 2")
    previous = ledger_file.digest(
        "fedblocks ledger", [2, "acme", DELTA, "one example of one company", ADD_REMOVE]
    )
    for *values, _ in connection.execute("SELECT * FROM releases ORDER BY seq").fetchall():
        previous = ledger_file.digest(previous, values)
        connection.execute("UPDATE releases SET hash = ? WHERE seq = ?", (previous, values[0]))
    connection.commit()
    connection.close()
    assert read_ledger(path).head == previous
    with opened(path) as ledger:
        assert ledger.verify().rows == 2
        charge(ledger, 2, GAUSSIAN)
        assert ledger.verify().rows == 3
    found = read_ledger(path)
    assert (found.header.version, found.header.composition) == (2, RENYI)
    assert found.spent.epsilon == found.rows[-1].epsilon_after


def test_companies_compose_only_over_the_blocks_they_trained(tmp_path: Path) -> None:
    trained = {"one": ["b0", "b0"], "two": ["b1"], "three": ["b0", "b1", "b1"]}
    for company, blocks in trained.items():
        with opened(tmp_path / company, company=company) as ledger:
            for n, block in enumerate(blocks):
                charge(ledger, n, GAUSSIAN, block, planned=len(blocks))
    spent = {company: read_ledger(tmp_path / company) for company in trained}
    for company, blocks in trained.items():
        assert [row.block for row in spent[company].rows] == blocks
        # All blocks of one company share its examples, so they add up; another company's do not.
        assert spent[company].rows[-1].epsilon_after == run_epsilon(GAUSSIAN.times(len(blocks)), DELTA)
    assert spent["two"].rows[-1].epsilon_after < spent["one"].rows[-1].epsilon_after


# --- reading --------------------------------------------------------------------------------------------------


def test_reading_changes_and_creates_nothing(path: Path) -> None:
    with opened(path) as ledger:
        charge(ledger, 0, GAUSSIAN)
        head = ledger.head()
        # A writer is there, with its log.
        before = content(path)
        assert {f"{path.name}-wal", f"{path.name}-shm"} < set(before)
        assert read_ledger(path).head == head
        after = content(path)
        # The shared memory holds readers' marks.
        assert {k: v for k, v in after.items() if "-shm" not in k} == {
            k: v for k, v in before.items() if "-shm" not in k
        }
    before = content(path)
    assert list(before) == [path.name]
    path.chmod(0o400)
    copy = read_ledger(path)
    assert (copy.header.company, copy.header.delta, copy.head) == ("acme", DELTA, head)
    assert content(path) == before


def test_a_missing_ledger_is_named_and_not_made(path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_ledger(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(LedgerError, match="is not a file"):
        read_ledger(path.parent)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="is empty"):
        read_ledger(path)
    path.write_text("not a database " * 100)
    with pytest.raises(LedgerError, match="restore it from a backup"):
        read_ledger(path)


def test_a_write_during_an_unlocked_read_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wrote when the reader began, so it took no lock; what it read meanwhile counts for nothing."""
    opened(path).close()
    modes = []

    def read(where: Path, mode: str) -> ledger_file.LedgerCopy:
        modes.append(mode)
        found = original(where, mode)
        if len(modes) == 1:
            with opened(path) as ledger:
                charge(ledger, 0, GAUSSIAN)
        return found

    original = ledger_file._read
    monkeypatch.setattr(ledger_file, "_read", read)
    assert len(read_ledger(path).rows) == 1
    assert modes == ["&immutable=1"] * 2


def test_reading_while_another_writes(path: Path) -> None:
    """Writers come and go (each open makes the log and each close removes it) while a reader reads."""
    opened(path).close()

    def write() -> None:
        for n in range(25):
            with opened(path) as ledger:
                charge(ledger, n, GAUSSIAN.step)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(len(read_ledger(path).rows))
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert len(read_ledger(path).rows) == 25


# --- checked twice --------------------------------------------------------------------------------------------


def test_verification_says_what_was_compared(path: Path) -> None:
    with opened(path) as ledger:
        for n in range(9):
            charge(ledger, n, GAUSSIAN if n % 2 else EPOCHS)
        found = ledger.verify()
    assert (found.rows, found.accountant) == (9, "PLD")
    assert "sum over runs" in str(found)
    assert [check.seq for check in found.checks] == [3, 5, 7, 9]
    for check in found.checks:
        assert check.lower is not None
        assert check.upper is not None
        assert check.lower <= check.epsilon <= check.upper
        assert check.epsilon <= (check.lower + 0.04) * 1.02
        assert "PRV" in check.says
    assert "row 9: Opacus' PRV below, its RDP above" in str(found)


def test_verification_of_an_empty_ledger(path: Path) -> None:
    with opened(path) as ledger:
        found = ledger.verify()
    assert (found.rows, found.checks) == (0, ())


@pytest.mark.parametrize(
    ("rule", "wrong", "factor"), [(RUNS, "epsilon", 0.9), (RUNS, "epsilon", 1.5), (RENYI, "epsilon_at", 1.1),
    (RENYI, "epsilon_at", 0.5)],
)  # fmt: skip
def test_an_accountant_wrong_in_writing_and_checking_is_found_by_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, wrong: str, factor: float
) -> None:
    real = getattr(composition, wrong)
    monkeypatch.setattr(composition, wrong, lambda *values: factor * real(*values))
    with opened(path, rule=rule) as ledger:
        for n in range(3):
            charge(ledger, n, GAUSSIAN.times(50))
        with pytest.raises(LedgerError, match=r"row 1: epsilon_after=.* the two accountants disagree"):
            ledger.verify()


def test_independent_bounds_of_what_it_knows_in_part() -> None:
    whole = independent_bounds([GAUSSIAN, EPOCHS], DELTA)
    assert whole[0] is not None
    assert whole[1] is not None
    part = independent_bounds([GAUSSIAN, EPOCHS, SKELLAM], DELTA)
    assert part[:2] == (whole[0], None)
    assert "nothing above" in part[2]
    capped = independent_bounds([CAPPED.times(30)], DELTA)
    assert capped[0] is not None
    assert capped[0] <= epsilon([CAPPED.times(30)], DELTA)
    for event in (SKELLAM, FIXED):
        assert independent_bounds([event], DELTA) == (
            None, None, "no independent accountant knows these mechanisms",
        )  # fmt: skip


def test_figures_beyond_the_prv_accountant_are_said_not_to_be_checked_by_it() -> None:
    """Would otherwise take all memory: its grid grows with epsilon."""
    lower, upper, says = independent_bounds(
        [GaussianSteps(sampling_rate=0.5, noise_multiplier=0.05, steps=9)], DELTA
    )
    assert lower is None
    assert upper is not None
    assert "beyond Opacus' PRV" in says
