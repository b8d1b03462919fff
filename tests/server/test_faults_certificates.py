"""Faults: certificates and rosters that do not fit, of real processes on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.faults import Fault
from support.processes import Command, Federation, federation, until

from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol.identity import load_roster, save_roster
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.settings import SimulationSettings

pytestmark = pytest.mark.slow


def replace(folder: Path, own: OwnCertificate) -> None:
    for name in ("own.key", "own.pem"):
        (folder / name).unlink()
    own.save(folder)


def waits(made: Federation, serve: Command, company: str) -> None:
    """The coordinator waits, by name, and nobody has paid."""
    until(lambda: f"waiting for {company}" in serve.said, "the others are there")
    assert made.rounds() == 0
    assert [len(made.rows(i)) for i in range(3)] == [0] * 3


@pytest.mark.fault(
    "wrong certificate: not the one that the coordinator has pinned", ends="finished", in_vain=0,
    says="waiting for company-1",
)  # fmt: skip
def test_an_agent_with_a_wrong_certificate_is_kept_out_and_told_why(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch "unreachable" as the only word, and an agent that gives up before the mistake is mended."""
    with federation(small, tmp_path, rounds=2) as made:
        stranger = OwnCertificate.create("company-1")
        replace(made.homes[1] / "transport", stranger)
        serve, agents = made.serve(), made.agents()
        waits(made, serve, "company-1")
        log = made.homes[1] / "company.log"
        until(lambda: "once it has this company's certificate" in log.read_text(), "the agent says why")
        assert agents[1].running
        (made.plane / "companies/company-1.pem").write_bytes(stranger.certificate)  # as it should have been
        fault.hold(made, serve, rounds=2, agents=agents)


@pytest.mark.fault(
    "wrong certificate: not the coordinator's that the company has pinned", ends="finished", in_vain=0,
    says="waiting for company-1",
)  # fmt: skip
def test_an_agent_that_has_pinned_another_coordinator_stays_away_and_says_why(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch an agent that talks to whoever listens there, and one that needs a restart after the new kit."""
    with federation(small, tmp_path, rounds=2) as made:
        pinned = made.homes[1] / "transport/coordinator.pem"
        right = pinned.read_bytes()
        pinned.write_bytes(OwnCertificate.create(COORDINATOR).certificate)
        serve, agents = made.serve(), made.agents()
        waits(made, serve, "company-1")
        log = made.homes[1] / "company.log"
        until(lambda: "shows another certificate than the pinned one" in log.read_text(), "it says why")
        pinned.write_bytes(right)
        fault.hold(made, serve, rounds=2, agents=agents)


@pytest.mark.fault(
    "company's certificate expired", ends="refused", in_vain=0,
    says="the certificate of company-1 expired on",
)  # fmt: skip
def test_an_agent_whose_certificate_has_expired_does_not_start(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch "unreachable", and a coordinator that does not say who is missing."""
    with federation(small, tmp_path, rounds=2) as made:
        old = OwnCertificate.create("company-1", days=0)
        replace(made.homes[1] / "transport", old)
        (made.plane / "companies/company-1.pem").write_bytes(old.certificate)
        serve, agents = made.serve(), made.agents()
        waits(made, serve, "company-1")
        assert "company-1 cannot connect with it" in serve.said
        fault.refuse(made, agents[1])


@pytest.mark.fault(
    "coordinator's certificate expired", ends="refused", in_vain=0,
    says="the certificate of the coordinator expired on",
)  # fmt: skip
def test_a_coordinator_whose_certificate_has_expired_does_not_start_nor_do_agents_that_have_pinned_it(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a coordinator for which companies look in vain."""
    with federation(small, tmp_path, rounds=2) as made:
        old = OwnCertificate.create(COORDINATOR, days=0)
        replace(made.plane, old)
        (made.homes[0] / "transport/coordinator.pem").write_bytes(old.certificate)
        fault.refuse(made, made.serve(), made.agent(0))


@pytest.mark.fault(
    "swapped certificates, at the coordinator", ends="refused", in_vain=0,
    says="certificate='company-0': is made out to 'company-1'",
)  # fmt: skip
def test_a_coordinator_with_swapped_certificates_does_not_start(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch one company in another's place."""
    with federation(small, tmp_path, rounds=2) as made:
        one, two = (made.plane / f"companies/company-{i}.pem" for i in (0, 1))
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        fault.refuse(made, made.serve())


@pytest.mark.fault(
    "swapped certificates, at a company: it has another's key", ends="stopped", in_vain=0,
    says="company-0 says it is company-1: it has the certificate of another",
)  # fmt: skip
def test_a_company_with_anothers_certificate_takes_nobodys_place(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch a company that counts twice, or as another."""
    with federation(small, tmp_path, rounds=2) as made:
        for name in ("own.key", "own.pem"):
            shutil.copy(made.homes[0] / "transport" / name, made.homes[1] / "transport" / name)
        serve, agents = made.serve(), [made.agent(1), made.agent(2)]
        fault.hold(made, serve, rounds=2, agents=agents)
        assert [len(made.rows(i)) for i in range(3)] == [0] * 3


@pytest.mark.fault(
    "roster difference", ends="mended", in_vain=0,
    says="roster_differs: that of company-1 and that of the coordinator differ: another key of company-2",
)  # fmt: skip
def test_rosters_that_differ_are_put_down_to_the_companies_in_which_they_do(
    small: SimulationSettings, tmp_path: Path, fault: Fault
) -> None:
    """Would catch blame for a company whose roster is right."""
    with federation(small, tmp_path, rounds=2) as made:
        path = made.homes[1] / "roster.toml"
        right = path.read_bytes()
        save_roster(path, dict(load_roster(path).members) | {"company-2": Identity.generate().public})
        stopped, agents = made.serve(), made.agents()
        until(lambda: not stopped.running, "the run stops")
        assert [len(made.rows(i)) for i in range(3)] == [0] * 3
        path.write_bytes(right)
        fault.hold(made, made.serve(), rounds=2, agents=agents, stopped=stopped)
