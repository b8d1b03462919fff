"""The data plane over real gRPC and real mutual TLS: who gets in, as whom, and who comes back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import ArrayRecord, Context, Message, RecordDict
from support.streaming import (
    NAMES,
    RUN,
    Plane,
    answering,
    asked,
    echo,
    end_of,
    held,
    listening,
    saying,
    until,
)

from fedblocks.client.agent import Agent
from fedblocks.client.endpoint import Endpoint, EndpointSettings, exclusive_agent
from fedblocks.errors import ProtocolError, RunError
from fedblocks.experiments.simulation.preparation import make_plan, public_model, read_inputs
from fedblocks.privacy.secure_aggregation import ChannelKeys, Identity, Member, Roster
from fedblocks.protocol.messages import JoinReply, JoinRequest
from fedblocks.protocol.transport import OwnCertificate, PinnedCertificates
from fedblocks.protocol.transport.certificates import COORDINATOR
from fedblocks.protocol.transport.frames import VERSION, hello
from fedblocks.protocol.transport.frames_pb2 import Frame, Hello
from fedblocks.protocol.transport.frames_pb2_grpc import DataPlaneStub
from fedblocks.protocol.transport.records import bytes_array
from fedblocks.server.cohort import join
from fedblocks.server.stream import AggregationService
from fedblocks.settings import SimulationSettings


@pytest.fixture
def plane() -> Iterator[Plane]:
    with listening() as plane:
        yield plane


def test_companies_answer_under_their_own_names_and_leave_when_the_run_is_over(plane: Plane) -> None:
    ended = []
    for name in NAMES:
        ended.append(plane.agent(name, saying(f"{name} hello"))[1])
    plane.up(*NAMES)
    assert asked(plane, *NAMES) == {name: f"{name} hello" for name in NAMES}
    assert list(plane.grid.get_node_ids()) == [1, 2, 3]
    plane.service.close()
    until(lambda: all(ended))
    assert [end["code"] for end in ended] == ["done"] * 3


def test_large_messages_arrive_whole_in_both_directions(plane: Plane) -> None:
    plane.agent("company-0")
    plane.up("company-0")
    values = np.random.default_rng(0).integers(0, 2**32, 2_000_003, dtype=np.uint32)
    big = RecordDict({"arrays": ArrayRecord({"a": bytes_array(values.tobytes())})})
    (reply,) = plane.grid.send_and_receive([Message(big, 1, "train.block")], timeout=20.0)
    assert reply.content.array_records["arrays"]["a"].data == values.tobytes()


def test_nobody_gets_in_without_a_certificate_or_without_tls(plane: Plane) -> None:
    with pytest.raises(grpc.RpcError):
        list(plane.raw(None, iter([hello(RUN, "0")])))
    channel = grpc.insecure_channel(f"127.0.0.1:{plane.port}")
    plane.channels.append(channel)
    with pytest.raises(grpc.RpcError):
        list(DataPlaneStub(channel).Exchange(iter([hello(RUN, "0")]), timeout=5.0))
    assert plane.service.connected == ()


def test_a_stranger_with_a_company_s_name_does_not_get_in(plane: Plane) -> None:
    """The name in a certificate is worth nothing; the key must be the pinned one's."""
    with pytest.raises(grpc.RpcError):
        list(plane.raw(OwnCertificate.create("company-0"), iter([hello(RUN, "0")])))
    assert plane.service.connected == ()


def test_a_company_cannot_vouch_for_another(plane: Plane) -> None:
    """company-1 signs a certificate in the name of company-0 with its own key, chain and all."""
    issuer = plane.companies["company-1"]
    parent = x509.load_pem_x509_certificate(issuer.certificate)
    signer = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company-0")]))
        .issuer_name(parent.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(parent.not_valid_before_utc)
        .not_valid_after(parent.not_valid_after_utc)
        .sign(signer, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for chain in (forged.public_bytes(encoding), forged.public_bytes(encoding) + issuer.certificate):
        try:
            code = end_of(plane.raw(OwnCertificate(chain, private), iter([hello(RUN, "0")])))
        except grpc.RpcError:
            code = "handshake"
        assert code in ("handshake", "unknown_certificate")
    assert plane.service.connected == ()


def test_an_expired_certificate_is_refused_though_it_is_pinned(plane: Plane) -> None:
    expired = OwnCertificate.create("company-0", days=0)
    pinned = PinnedCertificates({"company-0": expired.certificate})
    service = AggregationService(plane.coordinator, pinned, RUN)
    plane.port = service.start("127.0.0.1:0")
    time.sleep(1.1)
    try:
        with pytest.raises(grpc.RpcError):
            list(plane.raw(expired, iter([hello(RUN, "0")])))
        assert service.connected == ()
    finally:
        service.close()


def test_a_company_does_not_talk_to_another_coordinator(plane: Plane) -> None:
    endpoint = Endpoint(
        EndpointSettings(address=f"127.0.0.1:{plane.port}", patience=0.5),
        plane.companies["company-0"],
        OwnCertificate.create(COORDINATOR).certificate,
    )
    agent = Agent(endpoint, echo, Context(1, 1, {}, RecordDict(), {}), RUN)
    assert agent.serve() == "unreachable"
    assert plane.service.connected == ()


def test_a_company_cannot_join_under_another_s_name(plane: Plane, small: SimulationSettings) -> None:
    """Not even with a channel key that the other has signed."""
    inputs = read_inputs(small)
    plan = make_plan(small, public_model(small, inputs.public_train, lambda step: None), "run")
    signing = {name: Identity.generate() for name in NAMES}
    roster = Roster({name: identity.public for name, identity in signing.items()})
    for name in NAMES:
        said = "company-0" if name == "company-1" else name
        settings = JoinRequest(plan, {}).digest()
        channel = ChannelKeys.generate().signed(Member(said, signing[said], roster), plan.run, settings)
        plane.agent(name, answering(JoinReply(said, channel).to_record()))
    plane.up(*NAMES)
    with pytest.raises(ProtocolError, match="company-1 says it is company-0"):
        join(plane.grid, plan, {}, roster, 3)


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_another_version_is_refused_in_the_first_message(plane: Plane, version: int) -> None:
    frames = iter([Frame(hello=Hello(version=version, run=RUN))])
    assert end_of(plane.raw(plane.companies["company-0"], frames)) == "wrong_version"


def test_an_agent_waits_for_its_own_run_only_and_does_not_dial_again(plane: Plane) -> None:
    _, ended = plane.agent("company-0", run="run-2")
    until(lambda: bool(ended))
    assert ended == {"code": "wrong_run"}
    plane.agent("company-1", run="")
    plane.up("company-1")


def test_who_does_not_greet_loses_its_stream(plane: Plane) -> None:
    started = time.monotonic()
    assert end_of(plane.raw(plane.companies["company-0"], held([], threading.Event()))) == "malformed"
    assert time.monotonic() - started < 5.0


def test_the_newest_stream_of_a_company_counts(plane: Plane) -> None:
    _, first = plane.agent("company-0", saying("first"))
    plane.up("company-0")
    plane.agent("company-0", saying("second"))
    until(lambda: bool(first))
    assert first == {"code": "replaced"}  # and it does not dial again to push the other out
    assert asked(plane, "company-0") == {"company-0": "second"}


def test_streams_of_one_company_are_limited_and_leave_room_for_the_others(plane: Plane) -> None:
    silent = [plane.raw(plane.companies["company-0"], held([], threading.Event())) for _ in range(12)]
    plane.agent("company-1")
    plane.up("company-1")
    assert asked(plane, "company-1") == {"company-1": "hello"}
    ends = [end_of(stream) for stream in silent]
    assert ends.count("malformed") <= 6  # held until they should have greeted
    assert ends.count("busy") == 12 - ends.count("malformed") > 0


def test_one_agent_of_a_home_answers_at_a_time(tmp_path: Path) -> None:
    """Would catch a coordinator that starts agents without end, and a lock that outlives a killed one."""
    (tmp_path / "transport").mkdir()
    with exclusive_agent(tmp_path), pytest.raises(ProtocolError, match="busy"), exclusive_agent(tmp_path):
        pass
    text = f"""
import pathlib, time
from fedblocks.client.endpoint import exclusive_agent
with exclusive_agent(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ProtocolError, match="busy"), exclusive_agent(tmp_path):
            pass
        other.kill()
        other.wait()
    with exclusive_agent(tmp_path):
        pass


def test_an_agent_comes_back_when_its_stream_breaks(plane: Plane) -> None:
    plane.agent("company-0")
    plane.up("company-0")
    plane.service._links["company-0"].end()  # as if the connection had been cut
    until(lambda: asked(plane, "company-0", timeout=2.0) == {"company-0": "hello"})


def test_an_agent_finds_a_coordinator_that_was_started_again(plane: Plane) -> None:
    _, ended = plane.agent("company-0")
    plane.up("company-0")
    plane.service._server.stop(None).wait()  # a crash: nobody is told that the run is over
    again = AggregationService(plane.coordinator, plane.service.pinned, RUN)
    again.start(f"127.0.0.1:{plane.port}")
    until(lambda: again.connected == ("company-0",))
    again.close()
    until(lambda: bool(ended))
    assert ended == {"code": "done"}


def test_an_agent_without_a_coordinator_gives_up_after_its_patience(plane: Plane) -> None:
    plane.service.close()
    _, ended = plane.agent("company-0")
    until(lambda: bool(ended), seconds=20.0)
    assert ended == {"code": "unreachable"}


def test_a_port_in_use_is_an_error_and_not_a_second_coordinator(plane: Plane) -> None:
    service = AggregationService(plane.coordinator, plane.service.pinned, RUN)
    with pytest.raises(RunError, match="listen"):
        service.start(f"127.0.0.1:{plane.port}")
