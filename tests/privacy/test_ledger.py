"""The ledger never passes its ceiling, never forgets an acknowledged charge, and notices what was changed."""

import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedblocks.errors import BudgetExceeded, InputError, LedgerError
from fedblocks.privacy import composition as composition_module
from fedblocks.privacy.composition import MAX_KINDS, RENYI, RUNS, Terms, run_epsilon
from fedblocks.privacy.events import Event, GaussianSteps
from fedblocks.privacy.ledger import Charge, Ledger
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.privacy.ledger_room import remaining

DELTA = 1e-5
EVENT = GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20, dimension=900)
OTHER = GaussianSteps(sampling_rate=0.1, noise_multiplier=4.0, steps=5, dimension=900)
PLANNED = 30
WHOLE = run_epsilon(EVENT.times(PLANNED), DELTA)


def opened(
    path: Path, ceiling: float = 8.0, company: str = "acme", delta: float = DELTA, rule: str = RUNS
) -> Ledger:
    return Ledger.open(path, company, epsilon_ceiling=ceiling, delta=delta, clock=lambda: 1234.5, rule=rule)


def charge(ledger: Ledger, n: int, event: Event = EVENT, run: str = "r", planned: int = PLANNED) -> Charge:
    return ledger.charge(
        run=run, round=n, block="b0", release_id=f"id-{run}-{n}", terms=Terms(event, planned)
    )


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
    first, second, third = charge(ledger, 0), charge(ledger, 1), charge(ledger, 1, OTHER, "s", 7)
    assert first == Charge(0.0, WHOLE, repeated=False)
    assert second == Charge(WHOLE, WHOLE, repeated=False)
    assert third == Charge(WHOLE, WHOLE + run_epsilon(OTHER.times(7), DELTA, 2), repeated=False)
    row = ledger.rows()[2]
    assert (row.seq, row.company, row.run, row.round) == (3, "acme", "s", 1)
    assert (row.block, row.release_id, row.planned) == ("b0", "id-s-1", 7)
    assert (row.event, row.delta, row.time) == (OTHER, DELTA, 1234.5)
    assert (row.unit, row.adjacency) == ("one example of one company", "add or remove one example")
    assert (row.epsilon_before, row.epsilon_after) == (third.epsilon_before, third.epsilon_after)
    assert ledger.head() == row.hash
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}-wal").stat().st_mode) == 0o600


def test_spent_is_what_another_accountant_finds_for_each_run(ledger: Ledger) -> None:
    """Oracle: dp-accounting's own accountant on all that each run was pinned to, at its share of delta."""
    for n in range(6):
        charge(ledger, n, *((EVENT, "r") if n % 2 else (OTHER, "s")))
    expected = 0.0
    for event, share in ((OTHER, 0.95), (EVENT, 0.025)):
        accountant = PLDAccountant()
        accountant.compose(event.times(PLANNED).dp_event())
        expected += accountant.get_epsilon(share * DELTA)
    spent = ledger.spent()
    assert spent.epsilon == pytest.approx(expected, rel=1e-3)
    assert spent.epsilon == ledger.rows()[-1].epsilon_after
    assert (spent.delta, spent.mechanism, spent.accountant) == (DELTA, "Poisson-subsampled Gaussian", "PLD")
    assert "sum over runs" in str(spent)
    ledger.verify()


def test_a_run_is_charged_whole_and_pinned(ledger: Ledger) -> None:
    """Would catch a coordinator that stops a run after looking, or goes on with other terms or for longer."""
    terms = Terms(EVENT, 3)
    assert ledger.check_plan("r", terms) == charge(ledger, 0, planned=3).epsilon_after
    assert ledger.check_plan("r", terms) == ledger.spent().epsilon
    for other in (Terms(EVENT, 4), Terms(EVENT, 2), Terms(EVENT.times(2), 3), Terms(OTHER, 3)):
        with pytest.raises(LedgerError, match="run='r' is pinned to 3 releases of"):
            ledger.check_plan("r", other)
        with pytest.raises(LedgerError, match="run='r' is pinned to 3 releases of"):
            charge(ledger, 9, other.event, planned=other.releases)
    charge(ledger, 1, planned=3)
    charge(ledger, 2, planned=3)
    assert ledger.check_plan("r", terms) == ledger.spent().epsilon
    with pytest.raises(BudgetExceeded, match="of which 3 were made"):
        charge(ledger, 3, planned=3)
    assert charge(ledger, 2, planned=3).repeated
    assert len(ledger.rows()) == 3
    ledger.verify()


def test_joining_alone_pins_and_costs_nothing(ledger: Ledger) -> None:
    ledger.check_plan("r", Terms(EVENT, 3))
    ledger.check_plan("r", Terms(OTHER, 5))
    assert ledger.rows() == []
    charge(ledger, 0, OTHER, planned=5)


@pytest.mark.parametrize("rule", [RUNS, RENYI])
def test_the_ceiling_is_never_passed(path: Path, rule: str) -> None:
    with opened(path, ceiling=2.0, rule=rule) as ledger:
        fit = remaining(read_ledger(path), EVENT, 2.0)
        assert fit > 2
        for n in range(fit):
            charge(ledger, n, planned=fit)
        before = ledger.head()
        assert remaining(read_ledger(path), EVENT, 2.0) == 0
        big = GaussianSteps(sampling_rate=0.5, noise_multiplier=1.0, steps=50, dimension=9)
        for event in (EVENT, big):
            with pytest.raises(BudgetExceeded, match=r"'acme'.*past the ceiling 2: `fedblocks ledger show`"):
                charge(ledger, 0, event, "s", 1)
        assert ledger.head() == before
        assert ledger.spent().epsilon <= 2.0
        small = GaussianSteps(sampling_rate=0.001, noise_multiplier=50.0, steps=1, dimension=9)
        if remaining(read_ledger(path), small, 2.0):
            charge(ledger, 0, small, "s", 1)
        assert ledger.spent().epsilon <= 2.0
        ledger.verify()
    with opened(path, ceiling=0.1, rule=rule) as lowered, pytest.raises(BudgetExceeded):
        charge(lowered, 99, small, "t", 1)
    with opened(path, ceiling=3.0, rule=rule) as raised:
        charge(raised, 99, small, "t", 1)


@pytest.mark.parametrize("rule", [RUNS, RENYI])
def test_what_remains_is_what_a_plan_may_have(path: Path, rule: str) -> None:
    with opened(path, ceiling=2.0, rule=rule) as ledger:
        charge(ledger, 0, OTHER, "s", 1)
        fit = remaining(read_ledger(path), EVENT, 2.0)
        with pytest.raises(BudgetExceeded):
            ledger.check_plan("r", Terms(EVENT, fit + 1))
        assert ledger.check_plan("r", Terms(EVENT, fit)) <= 2.0
        assert len(ledger.rows()) == 1


def test_the_filter_charges_release_by_release(path: Path) -> None:
    """Closed form: the divergence of the subsampled Gaussian at the filter's order, times the steps, converted."""
    with opened(path, rule=RENYI) as ledger:
        charges = [charge(ledger, n) for n in range(4)]
        order = ledger._store.header.order
        assert order is not None
        accountant = RdpAccountant([order])
        accountant.compose(EVENT.times(4).dp_event())
        assert charges[3].epsilon_after == pytest.approx(
            accountant.get_epsilon(DELTA * (1 - 2**-7)), rel=1e-4
        )
        assert charges[0].epsilon_after < charges[1].epsilon_after
        assert f"Renyi filter at order {order:g}" in str(ledger.spent())
        ledger.verify()
    with opened(path, ceiling=1.0, rule=RENYI) as again:
        assert again._store.header.order == order
    with pytest.raises(LedgerError, match="by composition 'renyi'"):
        opened(path, rule=RUNS)


@pytest.mark.parametrize("rule", [RUNS, RENYI])
def test_a_ledger_cannot_be_slowed_for_ever(path: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a charge whose cost grows with every kind of plan that a coordinator ever made up."""
    composed = counted(monkeypatch)
    with opened(path, ceiling=50.0, rule=rule) as ledger:
        for n in range(MAX_KINDS):
            charge(ledger, n, kind(n), f"run-{n}", 2)
        with pytest.raises(LedgerError, match="the most runs, or kinds of release"):
            charge(ledger, 0, kind(99), "one-more", 1)
        composed.clear()
    # As another process, which remembers nothing.
    with opened(path, ceiling=50.0, rule=rule) as again:
        composed.clear()
        charge(again, 1, kind(0), "run-0", 2)
        # A sum over runs composes nothing anew, a filter looks each kind up, for the figures before and after.
        assert len(composed) <= (0 if rule == RUNS else 2 * MAX_KINDS)
        assert again.spent().epsilon == again.rows()[-1].epsilon_after


def test_a_charge_composes_the_run_that_it_begins_and_no_other(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        charge(ledger, n, kind(n), f"run-{n}", 1)
    composed: list[object] = []
    real = composition_module.epsilon
    monkeypatch.setattr(composition_module, "epsilon", lambda *v: (composed.append(v), real(*v))[1])
    charge(ledger, 9, kind(9), "run-9", 1)
    assert len(composed) == 1
    # What another version of the accountant wrote is not relied on.
    monkeypatch.setattr("fedblocks.privacy.ledger.ACCOUNT", "2/9.9")
    charge(ledger, 10, kind(10), "run-10", 1)
    assert len(composed) == 1 + 6 + 1
    charge(ledger, 11, kind(11), "run-11", 1)
    assert len(composed) == 1 + 6 + 1 + 1


@pytest.mark.parametrize("rule", [RUNS, RENYI])
def test_a_refusal_composes_as_much_whatever_was_spent(
    tmp_path: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a search for how many releases would fit: its time told a coordinator what is left of epsilon."""
    composed, refusals = counted(monkeypatch), {}
    for releases in (1, 30, 300, 1500):
        with opened(tmp_path / f"{releases}.sqlite", ceiling=3.0, rule=rule) as ledger:
            charge(ledger, 0, EVENT.step.times(releases), "elsewhere", 1)
            composed.clear()
            with pytest.raises(BudgetExceeded):
                ledger.check_plan("r", Terms(EVENT, 1000))
            refusals[ledger.rows()[-1].epsilon_after] = len(composed)
    assert max(refusals) > 1.5 * min(refusals)
    # The plan alone; a filter looks its one kind up for the figures before and after.
    assert list(refusals.values()) == [1 if rule == RUNS else 2] * 4


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every account that the ledger's composition asks for from now on."""
    composed: list[object] = []

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values: (composed.append(values), real(*values))[1]

    for name in ("epsilon", "rdp_of"):
        monkeypatch.setattr(composition_module, name, counting(getattr(composition_module, name)))
    return composed


def kind(n: int) -> GaussianSteps:
    return GaussianSteps(sampling_rate=0.001 * (1 + n), noise_multiplier=20.0, steps=1, dimension=9)


def test_plans_that_differ_in_a_last_digit_are_of_one_kind(path: Path) -> None:
    with opened(path, rule=RENYI) as ledger:
        for n in range(MAX_KINDS + 5):
            event = GaussianSteps(
                sampling_rate=0.02 - n * 1e-9, noise_multiplier=20.0 + n * 1e-9, steps=1, dimension=9
            )
            charge(ledger, n, event, f"run-{n}", 1)
        assert len({row.event for row in ledger.rows()}) == MAX_KINDS + 5


def test_a_ceiling_of_zero_allows_nothing(path: Path) -> None:
    with opened(path, ceiling=0.0) as ledger, pytest.raises(BudgetExceeded):
        charge(ledger, 0)


def test_the_same_release_is_charged_once(ledger: Ledger) -> None:
    charged = charge(ledger, 0)
    charge(ledger, 0, run="s")
    again = charge(ledger, 0)
    assert again.repeated
    assert again.epsilon_before == again.epsilon_after == ledger.spent().epsilon > charged.epsilon_after
    assert len(ledger.rows()) == 2


@pytest.mark.parametrize("change", [{"run": "r2"}, {"round": 1}, {"block": "b1"}, {"terms": Terms(OTHER, 9)}])
def test_an_id_means_one_release(ledger: Ledger, change: dict[str, object]) -> None:
    same: dict[str, object] = {"run": "r", "round": 0, "block": "b0", "release_id": "x"}
    same["terms"] = Terms(EVENT, 9)
    ledger.charge(**same)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="a new release needs a new id"):
        ledger.charge(**(same | change))  # type: ignore[arg-type]
    assert len(ledger.rows()) == 1


def test_terms_are_checked(path: Path, ledger: Ledger) -> None:
    for event in (None, {"steps": 1}):
        with pytest.raises(InputError, match=r"^event="):
            Terms(event, 1)  # type: ignore[arg-type]
    for releases in (0, -1, 1.0, True, None):
        with pytest.raises(InputError, match=r"^releases="):
            Terms(EVENT, releases)  # type: ignore[arg-type]
    # What floating point tells hangs on the number of values: a release that does not say it is not accounted.
    real = GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20)
    for use in (lambda: charge(ledger, 0, real), lambda: remaining(read_ledger(path), real, 8.0)):
        with pytest.raises(InputError, match="must say its dimension"):
            use()
    with pytest.raises(InputError, match="from 1 to"):
        charge(ledger, 0, EVENT.times(50_000), planned=2)
    assert ledger.rows() == []


def test_company_and_delta_are_fixed(ledger: Ledger, path: Path) -> None:
    charge(ledger, 0)
    for other in ({"company": "other"}, {"delta": 1e-6}, {"rule": RENYI}):
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
        ("UPDATE releases SET planned = 1 WHERE seq = 3", 3),
        ("UPDATE ledger SET composition = 'renyi', renyi_order = 4.0", 1),
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
        if "UPDATE ledger" not in statement:  # whose it is was read when it was opened
            for use in (ledger.verify, ledger.spent, lambda: charge(ledger, 9)):
                with pytest.raises(LedgerError, match=f"row {row}: the content does not fit its hash"):
                    use()
    with pytest.raises(LedgerError, match=f"row {row}"):
        read_ledger(path)
    with pytest.raises(LedgerError):
        opened(path)


def test_verify_recomputes_every_epsilon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as ledger:
        charge(ledger, 0)
        # A row with a fitting hash whose epsilon is a lie, as a broken accountant would have written it.
        monkeypatch.setattr(composition_module, "epsilon", lambda events, delta: 0.01)
        charge(ledger, 1, OTHER, "s")
        monkeypatch.undo()
        with pytest.raises(LedgerError, match=r"row 2: epsilon_after="):
            ledger.verify()
        assert ledger.spent().epsilon == WHOLE + run_epsilon(OTHER.times(PLANNED), DELTA, 2)


def test_verify_holds_every_row_against_what_its_run_is_pinned_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a writer that let a run go on for longer, or with other terms, in a chain that fits."""
    for n, (terms, planned) in enumerate([(EVENT, 2), (OTHER, 1)]):
        where = path.with_name(f"{n}.sqlite")
        with opened(where) as ledger:
            charge(ledger, 0, planned=1)
            monkeypatch.setattr(Ledger, "_after", lambda self, runs, rows, before, *rest, **more: before)
            charge(ledger, 1, terms, planned=planned)
            monkeypatch.undo()
            with pytest.raises(LedgerError, match="row 2: release 2 of run='r' is not of the terms"):
                ledger.verify()


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
    tamper(path, "PRAGMA user_version = 4")


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
        (as_newer_schema, "schema version 4"),
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
        ("round", 1 << 63),
    ],
)  # fmt: skip
def test_charges_are_checked(ledger: Ledger, field: str, value: object) -> None:
    good: dict[str, object] = {"run": "r", "round": 0, "block": "b0", "release_id": "x"}
    good["terms"] = Terms(EVENT, 9)
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
