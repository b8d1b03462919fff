"""Certificates and rosters that end: warned of a month before, refused by name and date after, at both ends."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.federation import COMPANIES, Federation

from fedblocks.client.endpoint import Endpoint
from fedblocks.errors import InputError
from fedblocks.protocol import private_file
from fedblocks.protocol.expiry import of_company, of_coordinator, refuse_ended
from fedblocks.protocol.federation.provisioner import provision
from fedblocks.protocol.identity import load_roster
from fedblocks.protocol.roster import SignedRoster
from fedblocks.protocol.transport import OwnCertificate
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.server.stream import ServiceSettings


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = Federation.at(tmp_path_factory.mktemp("federation"))
    made.ask()
    made.provision()
    made.all_installed()
    return made


def after(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def test_nothing_is_said_before_its_time_and_each_thing_from_then_on(federation: Federation) -> None:
    """The roster ends after 365 days, certificates after 730."""
    home = federation.home("acme")
    assert of_company(home, after(334)) == of_coordinator(federation.plane, after(334)) == []
    (soon,) = of_company(home, after(336))
    assert soon.valid
    assert soon.rule.startswith(
        "version 1 of the roster expires in 28 days; ask the provisioner for a new roster"
    )
    ended = [str(notice) for notice in of_company(home, after(731))]
    assert len(ended) == 3
    assert f"{home}/transport/own.pem: the certificate of acme expired on" in ended[0]
    assert f"fedblocks company request {home} --rotate" in ended[0]
    assert f"{home}/transport/coordinator.pem: the certificate of the coordinator expired on" in ended[1]
    assert f"{home}/roster.toml: version 1 of the roster expired on" in ended[2]
    named = [notice.owner for notice in of_coordinator(federation.plane, after(731))]
    assert named == [COORDINATOR, *COMPANIES, None]


def test_a_clock_that_is_far_behind_is_named(federation: Federation) -> None:
    notices = of_company(federation.home("acme"), after(-3))
    assert [notice.valid for notice in notices] == [False] * 3
    assert all("this clock says" in notice.rule and "set the clocks" in notice.rule for notice in notices)


def expired(name: str) -> OwnCertificate:
    return OwnCertificate.create(name, days=0)


def exchanged(folder: Path, own: OwnCertificate) -> None:
    private_file.write(folder / "own.key", own.key)
    private_file.write(folder / "own.pem", own.certificate)


@pytest.mark.parametrize("whose", ["own", "coordinator"])
def test_an_agent_with_an_expired_certificate_does_not_start(tmp_path: Path, whose: str) -> None:
    """It names the file, the owner, the day and the way out; would catch "unreachable"."""
    federation = Federation.at(tmp_path)
    provision(federation.file, trial=True)
    federation.all_installed()
    home = federation.home("acme")
    Endpoint.of(home)
    if whose == "own":
        exchanged(home / "transport", expired("acme"))
        said = f"transport/own.pem.*certificate of acme expired on {datetime.now(UTC):%Y-%m-%d}; make a new one with"
    else:
        private_file.write(home / "transport/coordinator.pem", expired(COORDINATOR).certificate)
        said = "transport/coordinator.pem.*certificate of the coordinator expired on"
    with pytest.raises(InputError, match=said):
        Endpoint.of(home)


def test_a_coordinator_names_the_company_whose_certificate_has_expired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And starts nevertheless; with an expired one of its own it does not."""
    federation = Federation.at(tmp_path)
    provision(federation.file, trial=True)
    federation.all_installed()
    plane = federation.plane
    private_file.write(plane / "companies/bravo.pem", expired("bravo").certificate)
    with caplog.at_level(logging.WARNING, "fedblocks.transport"):
        ServiceSettings.load(plane).service(plane, "run").close()
    assert "the certificate of bravo expired on" in caplog.text
    assert "acme" not in caplog.text
    exchanged(plane, expired(COORDINATOR))
    with pytest.raises(InputError, match=r"own\.pem.*certificate of the coordinator expired on"):
        ServiceSettings.load(plane).service(plane, "run")


def test_nobody_aggregates_under_a_roster_that_has_expired(federation: Federation, tmp_path: Path) -> None:
    """`load_roster` is what an agent reads at every message, and a coordinator for every run."""
    content = SignedRoster.parse(federation.roster.read_bytes(), "x").content
    past = {"issued": after(-10), "expires": after(-1)}
    path = tmp_path / "roster.toml"
    path.write_bytes(SignedRoster.sign(content.model_copy(update=past), federation.identity).file)
    with pytest.raises(InputError, match=r"version 1 expired on .* ask the provisioner for a new one"):
        load_roster(path)
    with pytest.raises(InputError, match="version 1 of the roster expired on"):
        refuse_ended(of_company(tmp_path))
    path.write_bytes(federation.roster.read_bytes().replace(b"acme", b"acmf"))
    with pytest.raises(InputError, match="altered after it was signed"):
        load_roster(path)
