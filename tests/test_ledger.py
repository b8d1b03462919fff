"""The ledger never passes its ceiling, never forgets an acknowledged charge, and notices what was changed."""

import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from fedblocks.errors import BudgetExceeded, InputError, LedgerError
from fedblocks.privacy import ledger as ledger_module
from fedblocks.privacy.accounting import epsilon
from fedblocks.privacy.events import GaussianSteps
from fedblocks.privacy.ledger import Charge, Ledger

DELTA = 1e-5
EVENT = GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20)
OTHER = GaussianSteps(sampling_rate=0.1, noise_multiplier=4.0, steps=5)


def opened(path: Path, ceiling: float = 8.0, company: str = "acme", delta: float = DELTA) -> Ledger:
    return Ledger.open(path, company, epsilon_ceiling=ceiling, delta=delta, clock=lambda: 1234.5)


def charge(ledger: Ledger, n: int, event: GaussianSteps = EVENT) -> Charge:
    return ledger.charge(run="r", round=n, block="b0", release_id=f"id-{n}", event=event)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with opened(path) as ledger:
        yield ledger


def tamper(path: Path, *statements: str) -> None:
    """What someone with the file and an SQLite shell can do."""
    connection = sqlite3.connect(path)
    for trigger in ("no_update", "no_delete"):
        connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_rows_say_what_was_charged(ledger: Ledger, path: Path) -> None:
    assert ledger.spent().epsilon == 0.0
    first, second = charge(ledger, 0), charge(ledger, 1, OTHER)
    assert first == Charge(0.0, epsilon([EVENT], DELTA), repeated=False)
    assert second == Charge(first.epsilon_after, epsilon([EVENT, OTHER], DELTA), repeated=False)
    row = ledger.rows()[1]
    assert (row.seq, row.company, row.run, row.round) == (2, "acme", "r", 1)
    assert (row.block, row.release_id) == ("b0", "id-1")
    assert (row.event, row.delta, row.time) == (OTHER, DELTA, 1234.5)
    assert (row.unit, row.adjacency) == ("one example of one company", "add or remove one example")
    assert (row.epsilon_before, row.epsilon_after) == (second.epsilon_before, second.epsilon_after)
    assert ledger.head() == row.hash
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}-wal").stat().st_mode) == 0o600


def test_spent_is_what_another_accountant_finds(ledger: Ledger) -> None:
    for n in range(6):
        charge(ledger, n, EVENT if n % 2 else OTHER)
    accountant = PLDAccountant()
    for row in ledger.rows():
        accountant.compose(row.event.dp_event())
    spent = ledger.spent()
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)
    assert spent.epsilon == ledger.rows()[-1].epsilon_after
    assert (spent.delta, spent.mechanism, spent.accountant) == (DELTA, "Poisson-subsampled Gaussian", "PLD")
    ledger.verify()


def test_the_ceiling_is_never_passed(path: Path) -> None:
    with opened(path, ceiling=0.8) as ledger:
        fit = ledger.remaining(EVENT)
        assert fit > 2
        for n in range(fit):
            charge(ledger, n)
        assert ledger.remaining(EVENT) == 0
        before = ledger.head()
        with pytest.raises(BudgetExceeded, match=r"'acme'.*ceiling 0\.8; 0 more releases like it fit"):
            charge(ledger, fit)
        small = GaussianSteps(sampling_rate=0.001, noise_multiplier=20.0, steps=1)
        big = GaussianSteps(sampling_rate=0.5, noise_multiplier=1.0, steps=50)
        with pytest.raises(BudgetExceeded):
            charge(ledger, fit, big)
        assert ledger.head() == before
        charge(ledger, fit, small)
        assert ledger.spent().epsilon <= 0.8
    with opened(path, ceiling=0.1) as lowered, pytest.raises(BudgetExceeded):
        charge(lowered, 99, small)
    with opened(path, ceiling=3.0) as raised:
        charge(raised, 99)


def test_refusal_says_how_many_fit(path: Path) -> None:
    with opened(path, ceiling=0.8) as ledger:
        charge(ledger, 0)
        fit = ledger.remaining(EVENT)
        plan = [EVENT] * (fit + 5)
        with pytest.raises(BudgetExceeded, match=f"the first {fit} of its {fit + 5} releases fit"):
            ledger.check_plan(plan)
        assert ledger.check_plan(plan[:fit]) == epsilon([EVENT] * (fit + 1), DELTA)
        assert len(ledger.rows()) == 1
        assert ledger.check_plan([]) == ledger.spent().epsilon


def test_a_ceiling_of_zero_allows_nothing(path: Path) -> None:
    with opened(path, ceiling=0.0) as ledger, pytest.raises(BudgetExceeded):
        charge(ledger, 0)


def test_the_same_release_is_charged_once(ledger: Ledger) -> None:
    charged = charge(ledger, 0)
    charge(ledger, 1)
    again = charge(ledger, 0)
    assert again.repeated
    assert again.epsilon_before == again.epsilon_after == ledger.spent().epsilon > charged.epsilon_after
    assert len(ledger.rows()) == 2


@pytest.mark.parametrize("change", [{"run": "r2"}, {"round": 1}, {"block": "b1"}, {"event": OTHER}])
def test_an_id_means_one_release(ledger: Ledger, change: dict[str, object]) -> None:
    same: dict[str, object] = {"run": "r", "round": 0, "block": "b0", "release_id": "x", "event": EVENT}
    ledger.charge(**same)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="a new release needs a new id"):
        ledger.charge(**(same | change))  # type: ignore[arg-type]
    assert len(ledger.rows()) == 1


def test_company_and_delta_are_fixed(ledger: Ledger, path: Path) -> None:
    charge(ledger, 0)
    for other in ({"company": "other"}, {"delta": 1e-6}):
        with pytest.raises(LedgerError, match="fixed when a ledger is created"):
            opened(path, **other)  # type: ignore[arg-type]
    with opened(path) as again:
        assert len(again.rows()) == 1


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE releases SET epsilon_after = 0.1 WHERE seq = 2", 2),
        ("UPDATE releases SET event = replace(event, '\"steps\": 20', '\"steps\": 2') WHERE seq = 1", 1),
        ("UPDATE releases SET run = 'else' WHERE seq = 3", 3),
        ("UPDATE releases SET time = time + 1 WHERE seq = 3", 3),
        ("DELETE FROM releases WHERE seq = 2", 2),
        ("DELETE FROM releases WHERE seq = 1", 1),
        ("UPDATE releases SET hash = lower(hex(randomblob(32))) WHERE seq = 2", 2),
    ],
)
def test_changed_rows_are_noticed(path: Path, statement: str, row: int) -> None:
    with opened(path) as ledger:
        for n in range(3):
            charge(ledger, n)
        ledger.verify()
        tamper(path, statement)
        for use in (ledger.verify, ledger.spent, lambda: charge(ledger, 9)):
            with pytest.raises(LedgerError, match=f"row {row}: the content does not fit its hash"):
                use()
    with pytest.raises(LedgerError, match=f"row {row}"):
        opened(path)


def test_verify_recomputes_every_epsilon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as ledger:
        charge(ledger, 0)
        # A row with a fitting hash whose epsilon is a lie, as a broken accountant would have written it.
        monkeypatch.setattr(ledger_module, "epsilon", lambda events, delta: 0.01)
        charge(ledger, 1)
        monkeypatch.undo()
        with pytest.raises(LedgerError, match=r"row 2: epsilon_before=0\.01"):
            ledger.verify()
        assert ledger.spent().epsilon == epsilon([EVENT, EVENT], DELTA)


def test_rows_cannot_be_changed_through_sqlite(ledger: Ledger, path: Path) -> None:
    charge(ledger, 0)
    connection = sqlite3.connect(path)
    for statement in ("UPDATE releases SET epsilon_after = 0", "DELETE FROM releases"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_the_head_shows_a_ledger_cut_short(path: Path) -> None:
    with opened(path) as ledger:
        charge(ledger, 0)
        charge(ledger, 1)
        head = ledger.head()
    tamper(path, "DELETE FROM releases WHERE seq = 2")
    with opened(path) as ledger:
        assert ledger.head() != head


def as_text(path: Path) -> None:
    path.write_text("not a database, " * 100)


def as_empty(path: Path) -> None:
    path.write_bytes(b"")


def as_other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE something (x)")
    connection.commit()
    connection.close()


def as_newer_schema(path: Path) -> None:
    opened(path).close()
    tamper(path, "PRAGMA user_version = 3")


def as_torn(path: Path) -> None:
    with opened(path) as ledger:
        charge(ledger, 0)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def as_lost_table(path: Path) -> None:
    opened(path).close()
    tamper(path, "DROP TABLE releases")


def as_log_without_file(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"charges")


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (as_text, "restore it from a backup"),
        (as_empty, "is empty, which a ledger never is"),
        (as_other_database, "no ledger"),
        (as_newer_schema, "schema version 3"),
        (as_torn, "restore it from a backup"),
        (as_lost_table, "restore it from a backup"),
        (as_log_without_file, "may hold charges"),
        (Path.mkdir, "is not a file"),
    ],
)
def test_damage_is_refused_with_advice(path: Path, damage: Callable[[Path], None], advice: str) -> None:
    damage(path)
    with pytest.raises(LedgerError, match=advice):
        opened(path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="folder must exist"):
        opened(tmp_path / "missing" / "ledger.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permission_is_named(path: Path) -> None:
    opened(path).close()
    path.parent.chmod(0o500)
    with pytest.raises(LedgerError, match="may read and write"):
        opened(path)


def test_file_mode_is_narrowed_and_no_draft_stays(path: Path) -> None:
    opened(path).close()
    path.chmod(0o644)
    opened(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", ""), ("run", 3), ("block", "a\nb"), ("block", None), ("release_id", "x" * 201),
        ("release_id", "\ud800"), ("round", -1), ("round", 1.0), ("round", math.nan), ("round", True),
        ("round", 1 << 63), ("event", None), ("event", {"steps": 1}),
    ],
)  # fmt: skip
def test_charges_are_checked(ledger: Ledger, field: str, value: object) -> None:
    good: dict[str, object] = {"run": "r", "round": 0, "block": "b0", "release_id": "x", "event": EVENT}
    with pytest.raises(InputError, match=f"^{field}="):
        ledger.charge(**(good | {field: value}))  # type: ignore[arg-type]
    assert ledger.rows() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon_ceiling", math.nan), ("epsilon_ceiling", math.inf), ("epsilon_ceiling", -1.0),
        ("epsilon_ceiling", True), ("delta", math.nan), ("delta", 0.0), ("delta", 1.0), ("delta", -1e-5),
        ("delta", "1e-5"), ("company", ""), ("company", 3),
    ],
)  # fmt: skip
def test_settings_are_checked(path: Path, field: str, value: object) -> None:
    good: dict[str, object] = {"company": "acme", "epsilon_ceiling": 1.0, "delta": DELTA}
    with pytest.raises(InputError, match=f"^{field}="):
        Ledger.open(path, **(good | {field: value}))  # type: ignore[arg-type]
    assert not path.exists()


def test_a_broken_clock_writes_nothing(path: Path) -> None:
    with Ledger.open(path, "acme", 8.0, DELTA, clock=lambda: math.nan) as ledger:
        with pytest.raises(InputError, match="clock="):
            charge(ledger, 0)
        assert ledger.rows() == []
