"""Faults: a machine's clock is a day wrong, of real processes on loopback."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from support.faults import Fault
from support.processes import Federation, federation
from support.shifted_clock import clock_shim, started

from fedblocks.protocol.transport import OwnCertificate, certificates
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow
DAY = 86400
ROUNDS = 4


def made_earlier(made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """All certificates are two days old."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Then:
            return super().now(tz) - datetime.timedelta(days=2)

    with monkeypatch.context() as patch:
        patch.setattr(certificates.datetime, "datetime", Then)
        old = {name: OwnCertificate.create(name) for name in (COORDINATOR, *(h.name for h in made.homes))}
    for folder, name in (
        (made.plane, COORDINATOR),
        *((home / "transport", home.name) for home in made.homes),
    ):
        for file in ("own.key", "own.pem"):
            (folder / file).unlink()
        old[name].save(folder)
    for home in made.homes:
        (home / "transport/coordinator.pem").write_bytes(old[COORDINATOR].certificate)
        (made.plane / f"companies/{home.name}.pem").write_bytes(old[home.name].certificate)


def skewed(
    small: SimulationSettings, folder: Path, fault: Fault, side: str, seconds: int, patch: pytest.MonkeyPatch
) -> None:
    shim = clock_shim(folder)
    with federation(small, folder, rounds=ROUNDS) as made:
        made_earlier(made, patch)
        agents = [made.agent(0), made.agent(2)]
        agent = ("transport", "agent", made.homes[1], "--json")
        serve = ("transport", "serve", made.run.path, made.plane, "--json")
        if side == "company":
            agents.append(started(made, shim, seconds, *agent))
            coordinator = made.serve()
        else:
            agents.append(made.agent(1))
            coordinator = started(made, shim, seconds, *serve)
        fault.hold(made, coordinator, rounds=ROUNDS, agents=agents)
        if side == "company":
            stamp = max(row.time for row in made.rows(1)) - max(row.time for row in made.rows(0))
            assert abs(stamp - seconds) < 3600  # its clock was wrong


@pytest.mark.fault("company's or coordinator's clock a day ahead", ends="finished", in_vain=0)
@pytest.mark.parametrize("side", ["company", "coordinator"])
def test_a_clock_that_is_a_day_ahead_does_no_harm(
    small: SimulationSettings, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """Would catch deadlines, ledgers or records that go by the other side's time of day."""
    skewed(small, tmp_path, fault, side, DAY, monkeypatch)


@pytest.mark.fault("company's or coordinator's clock a day behind", ends="finished", in_vain=0)
@pytest.mark.parametrize("side", ["company", "coordinator"])
def test_a_clock_that_is_a_day_behind_does_no_harm(
    small: SimulationSettings, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """The certificates are older than that."""
    skewed(small, tmp_path, fault, side, -DAY, monkeypatch)


@pytest.mark.fault(
    "company's or coordinator's clock a day behind, with certificates of today", ends="refused", in_vain=0,
    says="set the clocks",
)  # fmt: skip
def test_a_certificate_from_the_future_is_put_down_to_the_clocks(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch "unreachable" as the only word."""
    shim = clock_shim(tmp_path)
    with federation(small, tmp_path, rounds=ROUNDS) as made:
        agent = started(made, shim, -DAY, "transport", "agent", made.homes[1], "--json")
        serve = started(made, shim, -DAY, "transport", "serve", made.run.path, made.plane, "--json")
        fault.refuse(made, agent, serve)
