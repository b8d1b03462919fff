"""Certificates of the data plane while it runs: withdrawn, replaced, wrong; what each side says of it."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from support.coordinating import Coordinator
from support.streaming import CERTIFICATES, NAMES, RUN, Plane, echo, record, text_of, until

from fedblocks.client.agent import Agent
from fedblocks.client.app import app as client_app
from fedblocks.client.endpoint import Endpoint, EndpointSettings
from fedblocks.errors import InputError, ProtocolError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol import private_file
from fedblocks.protocol.identity import save_roster
from fedblocks.protocol.messages import KEYS, KeysRequest, refused
from fedblocks.protocol.roster import difference
from fedblocks.protocol.transport import OwnCertificate, PinnedCertificates
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.protocol.transport.handshake import fault
from fedblocks.protocol.transport.records import decode, encode
from fedblocks.server.cohort import join, wait_for_nodes
from fedblocks.server.grid import InProcessGrid
from fedblocks.server.stream import AggregationService, ServiceSettings
from fedblocks.settings import SimulationSettings, validated


@contextmanager
def listening(folder: Path) -> Iterator[Plane]:
    """As `support.streaming.listening`, with the certificates in files, as a coordinator has them."""
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.pem").write_bytes(CERTIFICATES[name].certificate)
    service = AggregationService(CERTIFICATES[COORDINATOR], PinnedCertificates.load(folder), RUN)
    plane = Plane(service, service.start("127.0.0.1:0"), CERTIFICATES[COORDINATOR], dict(CERTIFICATES))
    try:
        yield plane
    finally:
        service.close()


def asked(plane: Plane, *companies: str) -> dict[str, object]:
    answers = plane.service.ask("query.x", {name: encode(record("hello")) for name in companies}, 5.0)
    return {name: text_of(decode(content)) for name, content in answers}


def test_a_company_that_is_revoked_is_sent_away_at_once(tmp_path: Path) -> None:
    """While it has a stream, without a restart, and when it dials again; the others go on."""
    with listening(tmp_path / "companies") as plane:
        ends = {name: plane.agent(name)[1] for name in NAMES}
        plane.up(*NAMES)
        assert asked(plane, *NAMES).keys() == set(NAMES)
        (tmp_path / "companies/company-1.pem").unlink()
        assert asked(plane, *NAMES).keys() == {"company-0", "company-2"}
        assert plane.service.connected == ("company-0", "company-2")
        until(lambda: bool(ends["company-1"]))
        assert ends["company-1"] == {"code": "unknown_certificate"}
        again, ended = plane.agent("company-1", patience=0.5)
        until(lambda: bool(ended))
        assert ended == {"code": "unreachable"}
        assert asked(plane, "company-0").keys() == {"company-0"}
        again.stop()


def test_a_company_whose_certificate_is_replaced_comes_back_with_the_new_one(tmp_path: Path) -> None:
    """Without a restart of the coordinator; the old certificate is refused."""
    with listening(tmp_path / "companies") as plane:
        plane.agent("company-0")
        plane.up("company-0")
        new = OwnCertificate.create("company-0")
        private_file.write(tmp_path / "companies/company-0.pem", new.certificate)
        assert asked(plane, "company-0") == {}
        plane.companies["company-0"] = new
        plane.agent("company-0")
        plane.up("company-0")
        assert asked(plane, "company-0") == {"company-0": "hello"}


def test_where_everybody_is_revoked_nobody_gets_in(tmp_path: Path) -> None:
    """Would catch a server that asks for no certificate once its list is empty."""
    with listening(tmp_path / "companies") as plane:
        for name in NAMES:
            (tmp_path / "companies" / f"{name}.pem").unlink()
        for own in (CERTIFICATES["company-0"], OwnCertificate.create("company-0")):
            plane.companies["company-0"] = own
            _, ended = plane.agent("company-0", patience=0.3)
            until(lambda ended=ended: bool(ended))  # type: ignore[misc]
            assert ended["code"] in ("unreachable", "unknown_certificate")
        assert plane.service.connected == ()


def own_files(folder: Path, own: OwnCertificate) -> Path:
    own.save(folder)
    return folder


def test_what_a_handshake_shows(tmp_path: Path) -> None:
    """A certificate that is not pinned, on either side, an address where nobody or nothing of ours listens."""
    coordinator = CERTIFICATES[COORDINATOR].certificate
    with listening(tmp_path / "companies") as plane, socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{plane.port}"
        known = own_files(tmp_path / "known", CERTIFICATES["company-0"])
        stranger = own_files(tmp_path / "stranger", OwnCertificate.create("company-0"))
        assert fault(address, coordinator, known) is None
        other = OwnCertificate.create(COORDINATOR).certificate
        said = fault(address, other, known)
        assert said is not None
        assert "shows another certificate than the pinned one of the coordinator" in said
        assert "ask the provisioner for the newest roster" in said
        said = fault(address, coordinator, stranger)
        assert said is not None
        assert "once it has this company's certificate" in said
        assert "nobody listens" in str(fault("127.0.0.1:1", coordinator, None))
        assert "cannot be resolved" in str(fault("nowhere.invalid:1", coordinator, None))
        threading.Thread(target=lambda: mute.accept()[0].sendall(b"SSH-2.0-x\r\n" * 2), daemon=True).start()
        said = fault(f"127.0.0.1:{mute.getsockname()[1]}", coordinator, None)
        assert "does not speak TLS as a coordinator does" in str(said)


def test_an_agent_says_which_certificate_keeps_it_out(tmp_path: Path) -> None:
    """In its log, once; would catch "unreachable" alone."""
    with listening(tmp_path / "companies") as plane:
        settings = EndpointSettings(address=f"127.0.0.1:{plane.port}", patience=0.6)
        other = OwnCertificate.create(COORDINATOR).certificate
        lines: list[str] = []
        endpoint = Endpoint(settings, CERTIFICATES["company-0"], other)
        agent = Agent(endpoint, echo, Context(1, 1, {}, RecordDict(), {}), RUN, log=lines.append)
        assert agent.serve() == "unreachable"
    said = [line for line in lines if "shows another certificate than the pinned one" in line]
    assert len(said) == 1
    assert agent.fault is not None
    assert agent.fault in said[0]


def test_a_kit_that_is_installed_while_an_agent_dials_counts_at_its_next_try(tmp_path: Path) -> None:
    """A coordinator with a new certificate; would catch an agent that has to be started again."""
    with listening(tmp_path / "companies") as plane:
        home = tmp_path / "home"
        own_files(home / "transport", CERTIFICATES["company-0"])
        settings = f'address = "127.0.0.1:{plane.port}"\npatience = 20\n'.encode()
        private_file.write(home / "transport/transport.toml", settings)
        pinned = home / "transport/coordinator.pem"
        private_file.write(pinned, OwnCertificate.create(COORDINATOR).certificate)
        lines: list[str] = []
        agent = Agent(Endpoint.of(home), echo, Context(1, 1, {}, RecordDict(), {}), RUN, log=lines.append)
        thread = threading.Thread(target=agent.serve, daemon=True)
        thread.start()
        until(lambda: any("shows another certificate" in line for line in lines))
        private_file.write(pinned, CERTIFICATES[COORDINATOR].certificate)
        plane.up("company-0")
        agent.stop()
        thread.join(10)


def test_who_is_missing_is_named(tmp_path: Path) -> None:
    with listening(tmp_path / "companies") as plane:
        plane.agent("company-1")
        plane.up("company-1")
        with pytest.raises(RunError, match=r"1 of 3 nodes are online .*; missing: company-0, company-2"):
            wait_for_nodes(plane.grid, 3, 0.1)


@pytest.mark.parametrize(
    "settings", [{"listen": "127.0.0.1:99999"}, {"address": "coordinator.example:65536"}]
)
def test_a_port_that_there_is_not_is_refused(settings: dict[str, str]) -> None:
    """gRPC takes 99999 for 34463 without a word."""
    kind = ServiceSettings if "listen" in settings else EndpointSettings
    with pytest.raises(InputError, match="is above 65535, the largest there is"):
        validated(kind, settings)
    assert validated(kind, {key: value.rpartition(":")[0] + ":65535" for key, value in settings.items()})


def test_two_rosters_differ_in_companies_not_in_digests() -> None:
    a, b, c = (Identity.generate().public for _ in range(3))
    assert difference({"x": a, "y": b}, {"y": b, "x": a}) == ""
    assert difference({"x": a, "y": b}, {"x": a, "z": c}) == "z only in the other; y only in this one"
    assert difference({"x": a, "y": b}, {"x": c, "y": b}) == "another key of x"


@pytest.fixture
def coordinator(small: SimulationSettings, tmp_path: Path) -> Coordinator:
    return Coordinator(prepare(small, tmp_path / "run"))


def test_a_roster_that_differs_is_put_down_to_the_companies_in_which_it_differs(
    coordinator: Coordinator,
) -> None:
    """At the join, by the company that has it; would catch blame for somebody whose roster is right."""
    run = coordinator.run
    members = dict(run.roster().members)
    other = {name: key for name, key in members.items() if name != "company-4"} | {
        "mallory": members["company-4"]
    }
    other["company-1"] = Identity.generate().public
    save_roster(run.companies / "company-3/roster.toml", other)
    grid = InProcessGrid(client_app, 5, {"run-dir": str(run.path)})
    with pytest.raises(ProtocolError, match="that of company-3 and that of the coordinator differ") as caught:
        join(grid, coordinator.plan, coordinator.model.shared, run.roster(), 5)
    assert caught.value.code == "roster_differs"
    text = str(caught.value)
    assert "mallory only in that of company-3; company-4 only in that of the coordinator" in text
    assert "another key of company-1" in text


def test_a_roster_installed_within_a_run_ends_it_for_its_company_and_says_so(
    coordinator: Coordinator,
) -> None:
    """Before anything is charged, in the words of the company's own log, without blame for another company."""
    request = KeysRequest(coordinator.session(), coordinator.channels()).to_record()
    run, home = coordinator.run, coordinator.run.companies / "company-0"
    members = dict(run.roster().members)
    members["company-9"] = Identity.generate().public
    save_roster(home / "roster.toml", members)
    assert refused(coordinator.ask(1, KEYS, request)) == "roster_differs"
    assert "another roster was installed since the run was joined (company-9 only in the new one" in (
        home / "company.log"
    ).read_text().replace("\n    ", "")
    assert coordinator.charges() == 0


def test_a_certificate_that_nobody_can_read_is_put_down_and_ends_nothing(tmp_path: Path) -> None:
    """Would catch an agent that ends with a traceback since somebody listens at the coordinator's address: the time
    until which this certificate is valid is none, which shows only where it is asked for."""
    stranger = OwnCertificate.create(COORDINATOR)
    lines = stranger.certificate.decode().splitlines()
    der = re.sub(rb"\x17\x0d[0-9]{12}Z", b"\x17\x0d99999999999xZ", base64.b64decode("".join(lines[1:-1])))
    text = base64.encodebytes(der).decode().strip()
    (tmp_path / "shown.pem").write_text("\n".join([lines[0], text, lines[-1], ""]))
    (tmp_path / "shown.key").write_bytes(stranger.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "shown.pem", tmp_path / "shown.key")
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    plain, _ = server.accept()
                    with suppress(OSError, ValueError), context.wrap_socket(plain, server_side=True) as shown:
                        shown.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        pinned = CERTIFICATES[COORDINATOR].certificate
        said = fault(f"127.0.0.1:{server.getsockname()[1]}", pinned, None)
        assert "no certificate that can be read" in str(said)
    assert "cannot be resolved" in str(fault(f"{'a' * 70}.example:1", pinned, None))


@pytest.mark.parametrize("name", ["roster.toml", "transport/own.pem", "transport/coordinator.pem"])
def test_a_file_that_is_damaged_while_an_agent_waits_does_not_end_it(name: str, tmp_path: Path) -> None:
    """Would catch an agent that is down, until a person starts it, since a kit was being copied as it dialled."""
    home, own = tmp_path / "acme", OwnCertificate.create("acme")
    own.save(home / "transport")
    (home / "transport/coordinator.pem").write_bytes(CERTIFICATES[COORDINATOR].certificate)
    (home / "transport/transport.toml").write_text('address = "127.0.0.1:1"\npatience = 3.0\n')
    endpoint, said = Endpoint.of(home), list[str]()
    (home / name).write_bytes(b"# fedblocks roster, signed\n\xff\xfe")
    agent = Agent(endpoint, echo, Context(1, 1, {}, RecordDict(), {}), RUN, log=said.append)
    assert agent.serve() == "unreachable"
    assert any(line.startswith("warning: ") for line in said)
    assert agent.fault
