"""`company check`: a home that is in order is told so, and each mistake below is found, with how to mend it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.federation import Federation
from typer.testing import CliRunner

from fedblocks.blocks.examples import Examples
from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.doctor import Finding, examine, machine
from fedblocks.client.home import make_home
from fedblocks.client.importing import import_data
from fedblocks.client.policy import load_policy
from fedblocks.client.readiness import planned_terms
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol.identity import save_identity
from fedblocks.protocol.names import COORDINATOR
from fedblocks.protocol.transport.certificates import OwnCertificate
from fedblocks.protocol.transport.pinned import PinnedCertificates
from fedblocks.server.stream import AggregationService
from fedblocks.settings import DataSource, Plan, SimulationSettings

DAY = 86400


@dataclass
class Place:
    """A company's home in order, and what else a check is given."""

    home: Path
    plan: Plan
    fingerprint: str
    told: dict[str, Any] = field(default_factory=dict)

    def examine(self) -> list[Finding]:
        given = {"plan": self.plan, "fingerprint": self.fingerprint} | self.told
        return examine(self.home, **given)

    def rule(self, line: str) -> None:
        """Put one rule into policy.toml, in the place of the one that is there."""
        path = self.home / "policy.toml"
        name = line.split(" = ")[0]
        text = path.read_text()
        if re.search(rf"^{name} = ", text, re.MULTILINE):
            text = re.sub(rf"^{name} = .*$", line, text, flags=re.MULTILINE)
        else:
            text = f"{line}\n{text}"
        path.write_text(text)

    def company(self, at: float = 0.0) -> Company:
        return Company(self.home, load_policy(self.home / "policy.toml"), clock=lambda: time.time() + at)


@pytest.fixture(scope="module")
def made(
    small: SimulationSettings, private_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Provisioned, with data and ledger; the coordinator of its roster listens."""
    folder = tmp_path_factory.mktemp("federation")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    federation = Federation.at(folder, port=port)
    federation.ask()
    federation.provision()
    federation.all_installed()
    home = federation.home("acme")
    make_home(home, "acme", epsilon_ceiling=8.0, delta=1e-5)
    import_data(home, DataSource(source=str(private_file)), small.model, True)
    plan = make_plan(small, fresh_model(small), "run-1")
    Company(home, load_policy(home / "policy.toml")).create_ledger()
    own, companies = OwnCertificate.load(federation.plane), federation.plane / "companies"
    service = AggregationService(own, PinnedCertificates.load(companies), "run-1")
    service.start(f"127.0.0.1:{port}")
    try:
        yield Place(home, plan, federation.fingerprint)
    finally:
        service.close()


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    shutil.copytree(made.home, tmp_path / "acme")
    return Place(tmp_path / "acme", made.plan, made.fingerprint)


def test_a_home_that_is_in_order_has_nothing_to_mend(place: Place) -> None:
    """Would catch a check that cries wolf, so that nobody reads it, or that changes the home."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in place.home.rglob("*")}
    found = place.examine()
    assert [str(finding) for finding in found if finding.level != "note"] == []
    assert {"data", "spent", "reached", "cost", "plan"} <= {finding.name for finding in found}
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in place.home.rglob("*")} == before


def open_home(p: Place) -> None:
    p.home.chmod(0o755)


def open_key(p: Place) -> None:
    (p.home / "identity.key").chmod(0o644)


def linked_data(p: Place) -> None:
    (p.home / "data.npz").rename(p.home.parent / "data.npz")
    (p.home / "data.npz").symlink_to(p.home.parent / "data.npz")


def no_policy(p: Place) -> None:
    (p.home / "policy.toml").unlink()


def rule_misspelt(p: Place) -> None:
    p.rule("minimum_cohorts = 3")


def data_not_declared(p: Place) -> None:
    path = p.home / "policy.toml"
    path.write_text(path.read_text().partition("\n[data]\n")[0])


def seeded(p: Place) -> None:
    p.rule("simulation_seed = 1")


def name_not_in_roster(p: Place) -> None:
    p.rule('company = "acmee"')


def another_identity(p: Place) -> None:
    (p.home / "identity.key").unlink()
    save_identity(p.home / "identity.key", Identity.generate())


def no_roster(p: Place) -> None:
    (p.home / "roster.toml").unlink()


def roster_altered(p: Place) -> None:
    path = p.home / "roster.toml"
    path.write_text(path.read_text().replace("bravo", "brave"))


def roster_expired(p: Place) -> None:
    p.told["clock"] = lambda: time.time() + 370 * DAY


def certificate_ends_soon(p: Place) -> None:
    p.told["clock"] = lambda: time.time() + 715 * DAY


def certificate_not_begun(p: Place) -> None:
    p.told["clock"] = lambda: time.time() - 2 * DAY


def another_provisioner(p: Place) -> None:
    p.fingerprint = "0000 " * 8


def key_of_another_pair(p: Place) -> None:
    (p.home / "transport/own.key").write_bytes(OwnCertificate.create("acme").key)


def no_certificate(p: Place) -> None:
    (p.home / "transport/own.pem").unlink()


def renewed_here_alone(p: Place) -> None:
    for name in ("own.key", "own.pem"):
        (p.home / "transport" / name).unlink()
    OwnCertificate.create("acme").save(p.home / "transport")


def another_coordinator(p: Place) -> None:
    (p.home / "transport/coordinator.pem").write_bytes(OwnCertificate.create(COORDINATOR).certificate)


def own_for_coordinators(p: Place) -> None:
    shutil.copy(p.home / "transport/own.pem", p.home / "transport/coordinator.pem")


def address(p: Place, text: str) -> None:
    (p.home / "transport/transport.toml").write_text(f'address = "{text}"\n')


def nobody_listens(p: Place) -> None:
    address(p, "127.0.0.1:9")


def no_such_port(p: Place) -> None:
    address(p, "127.0.0.1:99999")


def no_data(p: Place) -> None:
    (p.home / "data.npz").unlink()


def damaged_data(p: Place) -> None:
    path = p.home / "data.npz"
    path.write_bytes(path.read_bytes()[:-200])


def data_of_another_shape(p: Place) -> None:
    data = Examples.load(p.home / "data.npz")
    Examples(data.inputs[..., :4], data.targets).save(p.home / "data.npz")


def hardly_any_data(p: Place) -> None:
    data = Examples.load(p.home / "data.npz")
    data[slice(0, 0)].save(p.home / "data.npz")


def data_replaced(p: Place) -> None:
    data = Examples.load(p.home / "data.npz")
    data[slice(0, 150)].save(p.home / "data.npz")


def a_class_is_missing(p: Place) -> None:
    data = Examples.load(p.home / "data.npz")
    data[data.targets != 3].save(p.home / "data.npz")


def no_ledger(p: Place) -> None:
    (p.home / "ledger.sqlite").unlink()


def older_ledger(p: Place) -> None:
    shutil.copy(p.home / "ledger.sqlite", p.home.parent / "old")
    terms = planned_terms(p.plan)
    with p.company().ledger() as ledger:
        ledger.charge(run="run-1", round=1, block="block-0", release_id="x", terms=terms)
    (p.home / "ledger.sqlite").unlink()
    shutil.copy(p.home.parent / "old", p.home / "ledger.sqlite")


def damaged_ledger(p: Place) -> None:
    path = p.home / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[:5000])


def no_steps(p: Place) -> None:
    (p.home / "steps.sqlite").unlink()


def delta_changed(p: Place) -> None:
    p.rule("delta = 1e-06")


def record_cut(p: Place) -> None:
    path = p.home / "decisions.jsonl"
    path.write_bytes(b"")


def clock_behind_the_ledger(p: Place) -> None:
    with p.company(DAY).ledger() as ledger:
        ledger.charge(run="r", round=1, block="b", release_id="x", terms=planned_terms(p.plan))
    p.rule("epsilon_ceiling = 20.0")


def ledger_used_up(p: Place) -> None:
    with p.company().ledger() as ledger:
        ledger.charge(run="r", round=1, block="b", release_id="x", terms=planned_terms(p.plan))
    p.rule("epsilon_ceiling = 1.0")


def larger_cohort_than_roster(p: Place) -> None:
    p.rule("minimum_cohort = 4")


def all_collude(p: Place) -> None:
    p.rule("least_colluders = 3")


def nothing_may_be_spent(p: Place) -> None:
    p.rule("epsilon_ceiling = 0.0")


def no_such_device(p: Place) -> None:
    p.rule('device = "cuda:7"')


def too_much_memory(p: Place) -> None:
    p.rule("memory_mb = 1000000000")


def too_many_threads(p: Place) -> None:
    p.rule("threads = 1000")


def ceiling_of_a_run_above_all(p: Place) -> None:
    p.rule("epsilon_ceiling_run = 100.0")


def plan_too_dear(p: Place) -> None:
    p.rule("epsilon_ceiling = 1.5")


def plan_too_dear_for_a_run(p: Place) -> None:
    p.rule("epsilon_ceiling_run = 1.5")


def plan_below_the_noise_floor(p: Place) -> None:
    p.rule("minimum_noise_multiplier = 100.0")


def plan_for_other_data(p: Place) -> None:
    p.plan = p.plan.changed(model=p.plan.model.model_dump() | {"classes": 12})


def plan_that_leaves_batches_empty(p: Place) -> None:
    p.plan = p.plan.changed(training=p.plan.training.model_dump() | {"sampling_rate": 1e-4})


def delta_too_large(p: Place) -> None:
    p.told["connect"] = False
    data = Examples.load(p.home / "data.npz")
    Examples(data.inputs.repeat(600, 1, 1, 1), data.targets.repeat(600)).save(p.home / "data.npz")


MISTAKES: list[tuple[Callable[[Place], None], str, str, str]] = [
    (open_home, "error", "open_file", "chmod 700"),
    (open_key, "error", "open_file", r"identity\.key is open to others.*chmod 600"),
    (linked_data, "error", "open_file", r"data\.npz is a link.*mv"),
    (no_policy, "error", "no_policy", "fedblocks company init"),
    (rule_misspelt, "error", "bad_policy", "minimum_cohorts.*unknown field"),
    (data_not_declared, "error", "bad_policy", "fedblocks company import"),
    (seeded, "error", "simulation_seed", "remove the line"),
    (name_not_in_roster, "error", "not_in_roster", "'acmee'.*acme, bravo, charlie"),
    (name_not_in_roster, "error", "other_name", "made out to 'acme'"),
    (another_identity, "error", "other_identity", "newest roster"),
    (no_roster, "error", "no_roster", "fedblocks company install"),
    (roster_altered, "error", "bad_roster", "altered after it was signed"),
    (roster_expired, "error", "expired", "version 1 of the roster expired on.*new roster"),
    (certificate_ends_soon, "warning", "expiring", r"certificate of acme expires in \d+ days.*--rotate"),
    (certificate_not_begun, "error", "expired", "not valid before.*set the clocks"),
    (another_provisioner, "error", "other_provisioner", "do not use it"),
    (key_of_another_pair, "error", "other_key", r"not the key of own\.pem"),
    (no_certificate, "error", "no_certificate", "fedblocks company install"),
    (renewed_here_alone, "error", "other_certificate", "the coordinator will refuse it"),
    (renewed_here_alone, "error", "unreachable", "ends the connection"),
    (another_coordinator, "error", "unreachable", "another certificate than the pinned one"),
    (own_for_coordinators, "error", "not_the_coordinator", "made out to 'acme'"),
    (nobody_listens, "error", "unreachable", "nobody listens"),
    (no_such_port, "error", "bad_address", "65535"),
    (no_data, "error", "no_data", "fedblocks company import"),
    (damaged_data, "error", "bad_data", "not a whole file.*--replace"),
    (data_of_another_shape, "error", "bad_data", r"inputs=\(1, 8, 4\).*--replace"),
    (hardly_any_data, "warning", "few_examples", "0 examples are so few"),
    (data_replaced, "warning", "other_data", "replaced since the import"),
    (a_class_is_missing, "warning", "classes", r"no example of 1 of 10 classes \(3\)"),
    (no_ledger, "error", "no_ledger", "fedblocks ledger create"),
    (older_ledger, "error", "bad_ledger", "cut short, or replaced"),
    (damaged_ledger, "error", "bad_ledger", "restore it from a backup"),
    (no_steps, "error", "bad_ledger", r"steps\.sqlite is missing"),
    (delta_changed, "error", "other_ledger", "write delta = 1e-05"),
    (record_cut, "error", "bad_record", "cut short"),
    (clock_behind_the_ledger, "error", "clock", "ahead of this machine's clock.*NTP"),
    (ledger_used_up, "error", "no_room", "raise epsilon_ceiling"),
    (larger_cohort_than_roster, "error", "contradiction", "minimum_cohort: 4 companies.*roster has 3"),
    (all_collude, "error", "contradiction", "nobody would be left"),
    (nothing_may_be_spent, "error", "contradiction", "every plan is refused"),
    (no_such_device, "error", "contradiction", "'cuda:7' is not available"),
    (too_much_memory, "error", "memory", "memory_mb.*lower it"),
    (too_many_threads, "warning", "threads", r"write threads = \d+"),
    (ceiling_of_a_run_above_all, "warning", "odd_rule", "limits nothing"),
    (plan_too_dear, "error", "budget", r"from 0 to [\d.]+ of 1\.5; ask for at most \d+ rounds"),
    (plan_too_dear_for_a_run, "error", "budget", r"epsilon_ceiling_run=1\.5"),
    (plan_below_the_noise_floor, "error", "refused", "noise_multiplier=.*below this company's 100"),
    (plan_for_other_data, "error", "refused", "other data"),
    (plan_that_leaves_batches_empty, "warning", "sampling", "most are empty"),
    (delta_too_large, "warning", "delta", r"above 1 / 120,000 examples"),
]


@pytest.mark.parametrize(
    ("plant", "level", "name", "says"), MISTAKES, ids=[f"{m[0].__name__}-{m[2]}" for m in MISTAKES]
)
def test_each_mistake_is_found_in_one_line_that_says_how_to_mend_it(
    place: Place, plant: Callable[[Place], None], level: str, name: str, says: str
) -> None:
    """Would catch a mistake that only shows when a run has begun, and a finding that leaves its reader helpless."""
    plant(place)
    found = place.examine()
    matching = [finding for finding in found if (finding.level, finding.name) == (level, name)]
    assert any(re.search(says, str(finding)) for finding in matching), [str(each) for each in found]
    for finding in found:
        assert "\n" not in str(finding)
        assert "Traceback" not in str(finding)


def test_what_is_wrong_with_the_machine_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room and a clock that was never set; each would stop a round that others are charged for."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    place.told = {"clock": lambda: 1000.0, "connect": False}
    found = {finding.name: finding for finding in place.examine()}
    assert "5 MB are free" in str(found["disk"])
    assert "1970-01-01" in str(found["clock"])
    assert found["disk"].mend
    assert found["clock"].mend


def test_exit_codes_and_json_say_whether_a_run_would_be_stopped(place: Place, tmp_path: Path) -> None:
    """0 where nothing or only warnings are found, 2 where something is wrong; one JSON object on stdout."""
    plan = tmp_path / "plan.json"
    plan.write_text(place.plan.model_dump_json())
    words = ["company", "check", str(place.home), "--plan", str(plan), "--json"]
    place.rule("threads = 1000")
    done = CliRunner().invoke(cli, words)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"], told["errors"], told["warnings"]) == (0, True, 0, 1)
    (place.home / "data.npz").unlink()
    done = CliRunner().invoke(cli, [*words, "--offline"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"]) == (2, False)
    assert [each["name"] for each in told["findings"] if each["level"] == "error"] == ["no_data"]
    done = CliRunner().invoke(cli, ["company", "check", str(tmp_path / "nowhere"), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["findings"][0]["name"]) == (2, "no_home")


def test_no_finding_shows_a_secret_or_a_value_of_the_data(place: Place) -> None:
    """Would catch a key or a password quoted from a file that is not of its form."""
    secret = (place.home / "identity.key").read_text().strip()
    (place.home / "identity.key").write_text(f"{secret}zz\n")
    (place.home / "transport/own.key").write_text(f"-----BEGIN nonsense {secret}")
    text = " ".join(map(str, place.examine()))
    assert "bad_identity" in {finding.name for finding in place.examine()}
    assert secret not in text
