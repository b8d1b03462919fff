"""What the provisioner makes of federation.toml and requests, and what it makes of them the next time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.federation import COMPANIES, Federation, snapshot

from fedblocks.errors import InputError
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol import signed_text
from fedblocks.protocol.federation.keys import Keys, own_keys
from fedblocks.protocol.federation.request import Request
from fedblocks.protocol.federation.settings import FederationSettings
from fedblocks.protocol.identity import save_identity
from fedblocks.protocol.transport import OwnCertificate


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation.at(tmp_path)
    made.ask()
    return made


def refused(federation: Federation, rule: str, **options: Any) -> None:
    """The provisioner says so, and has written nothing."""
    before = snapshot(federation.office)
    with pytest.raises(InputError, match=rule):
        federation.provision(**options)
    assert snapshot(federation.office) == before


def test_whoever_has_sent_no_request_is_named(federation: Federation) -> None:
    for name in ("bravo", "coordinator"):
        (federation.office / "requests" / f"{name}.request").unlink()
    refused(federation, "'bravo, coordinator': no request of theirs")


def test_fingerprints_that_were_read_out_are_compared(federation: Federation) -> None:
    """Would catch a request that somebody has replaced on its way."""
    spoken = Request.of(own_keys("company", federation.home("acme"), "acme")).fingerprint
    federation.wants(*COMPANIES, more=f'[fingerprints]\nacme = "{spoken.upper().replace(" ", "-")}"\n')
    assert federation.provision().confirmed == {"acme"}
    other = Request.of(Keys.create("company", "acme"))
    (federation.office / "requests/acme.request").write_bytes(other.file)
    refused(federation, f"has the fingerprint {other.fingerprint}, federation.toml says {spoken}")


def test_a_request_says_the_same_fingerprint_however_often_it_is_made(federation: Federation) -> None:
    keys = own_keys("company", federation.home("acme"), "acme")
    again = own_keys("company", federation.home("acme"), "acme")
    assert Request.of(keys).file == Request.of(again).file
    rotated = Request.of(own_keys("company", federation.home("acme"), "acme", rotate=True))
    assert rotated.fingerprint != Request.of(keys).fingerprint
    once_more = Request.of(own_keys("company", federation.home("acme"), "acme", rotate=True))
    assert once_more.file == rotated.file


def forged(changes: dict[str, object], signer: Identity | None = None) -> bytes:
    """A request of a company's, changed and signed again, with its own key or another's."""
    keys = Keys.create("company", "acme")
    own = {
        "role": "company",
        "name": "acme",
        "identity": keys.identity.public.hex(),
        "certificate": keys.own.certificate.decode(),
        "node_key": keys.node_public,
    }
    text = tomli_w.dumps({key: value for key, value in (own | changes).items() if value is not None})
    return signed_text.sign("request", text, signer or keys.identity).content


def certified_by_another() -> str:
    """A certificate in acme's name that acme has no key for."""
    own = x509.load_pem_x509_certificate(OwnCertificate.create("acme").certificate)
    builder = x509.CertificateBuilder(own.issuer, own.subject, own.public_key(), 1)
    builder = builder.not_valid_before(own.not_valid_before_utc).not_valid_after(own.not_valid_after_utc)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (lambda: forged({}, Identity.generate()), "signed with another key than the identity"),
        (
            lambda: forged({"certificate": OwnCertificate.create("bravo").certificate.decode()}),
            "made out to 'bravo'",
        ),
        (lambda: forged({"certificate": certified_by_another()}), "is not signed with its own key"),
        (lambda: forged({"name": "bravo"}), "its certificate is made out to 'acme'"),
        (lambda: forged({"node_key": "ssh-ed25519 AAAA"}), "expected a P-384 key"),
        (lambda: forged({"node_key": None}), "has a node key"),
        (lambda: forged({"role": "coordinator", "node_key": None}), "made out to fedblocks-coordinator"),
        (lambda: forged({"more": "x"}), "unknown field"),
        (lambda: b"acme", "not a signed request"),
        (lambda: forged({}).replace(b"acme", b"bcme"), "altered after it was signed"),
        (lambda: Request.of(Keys.create("company", "bravo")).file, "is of 'bravo', expected one of 'acme'"),
        (lambda: Request.of(Keys.create("company", "acme", days=0)).file, "expired on .* --rotate"),
        (lambda: Request.of(Keys.create("company", "acme", days=9999)).file, "more than 3650 days"),
    ],
)
def test_a_request_that_does_not_hold_together_is_refused(
    federation: Federation, content: Callable[[], bytes], rule: str
) -> None:
    (federation.office / "requests/acme.request").write_bytes(content())
    refused(federation, rule)


def test_a_request_survives_a_mail_program(federation: Federation) -> None:
    """Line ends of Windows; nothing else may change."""
    path = federation.office / "requests/acme.request"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    federation.provision()
    federation.install("acme")


def test_no_two_parties_have_a_key_in_common(federation: Federation) -> None:
    """A company that sends another's node key, or certificate, as its own."""
    acme, bravo = (own_keys("company", federation.home(name), name) for name in ("acme", "bravo"))
    shared = Keys("company", bravo.identity, bravo.own, acme.node)
    (federation.office / "requests/bravo.request").write_bytes(Request.of(shared).file)
    refused(federation, "has a key that acme has too")


def test_a_second_run_changes_what_has_changed_and_nobody_else_s_keys(federation: Federation) -> None:
    first = federation.provision()
    assert (first.roster.version, first.changes["added"]) == (1, list(COMPANIES))
    same = federation.provision()
    assert (same.roster.version, same.changes) == (1, {"added": [], "revoked": [], "rotated": []})
    federation.wants("acme", "bravo", "delta")
    federation.ask("delta")
    second = federation.provision()
    assert second.changes == {"added": ["delta"], "revoked": ["charlie"], "rotated": []}
    old, new = first.roster.content, second.roster.content
    assert (new.version, new.revoked) == (2, {"charlie": 2})
    for name in ("acme", "bravo"):
        assert new.companies[name] == old.companies[name]
        assert new.certificates[name] == old.certificates[name]
    assert not federation.kit("charlie").exists()
    former = [path.read_bytes() for path in (federation.office / "former").rglob("*") if path.is_file()]
    assert first.roster.file in former
    federation.wants(*COMPANIES, "delta")
    third = federation.provision()
    assert third.roster.content.revoked == {}
    assert third.changes["added"] == ["charlie"]


def test_one_party_of_a_trial_gets_new_keys_and_the_others_keep_theirs(tmp_path: Path) -> None:
    federation = Federation.at(tmp_path)
    first = federation.provision(trial=True)
    federation.all_installed()
    before = snapshot(federation.office / "trial")
    second = federation.provision(trial=True, rotate=["bravo"])
    assert second.changes == {"added": [], "revoked": [], "rotated": ["bravo"]}
    after = snapshot(federation.office / "trial")
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {f"bravo/{name}" for name in first_keys()}
    with pytest.raises(InputError, match="--replace-keys"):
        federation.install("bravo")
    assert federation.install("bravo", replace_keys=True).keys == "kit"
    assert federation.install("acme", federation.roster).keys == "own"
    assert federation.install_plane(federation.roster).changes == "another key of bravo"
    assert second.roster.version == first.roster.version + 1


def first_keys() -> tuple[str, ...]:
    return ("identity.key", "transport/own.key", "transport/own.pem", "transport/node.key")


def test_rotating_is_for_those_whose_keys_are_here(federation: Federation) -> None:
    refused(federation, "it makes a new request itself", trial=True, rotate=["acme"])
    refused(federation, "'nobody'", trial=True, rotate=["nobody"])


def test_the_roster_is_renewed_before_it_ends(federation: Federation) -> None:
    start = datetime.now(UTC)
    assert federation.provision(now=start).roster.version == 1
    assert federation.provision(now=start + timedelta(days=330)).roster.version == 1
    assert federation.provision(now=start + timedelta(days=340)).roster.version == 2
    federation.wants(*COMPANIES, days=100)
    assert federation.provision(now=start + timedelta(days=340)).roster.version == 3


def test_a_certificate_that_ends_soon_is_named(federation: Federation) -> None:
    made = federation.provision(now=datetime.now(UTC) + timedelta(days=710))
    assert [notice.owner for notice in made.notices] == [*COMPANIES, "coordinator"]
    assert "the certificate of acme expires in 19 days; acme makes a new request" in str(made.notices[0])


def test_the_provisioner_s_own_state_is_whole_or_refused(federation: Federation) -> None:
    """A lost or exchanged key: every installed roster would refuse the next one."""
    federation.provision()
    key = federation.office / "provisioner.key"
    content = key.read_bytes()
    key.unlink()
    refused(federation, "is missing, and signed the roster beside it")
    key.write_bytes(Identity.generate().private_bytes().hex().encode())
    key.chmod(0o600)
    refused(federation, "is not signed with provisioner.key beside it")
    key.write_bytes(content)
    assert federation.provision().roster.version == 1


def test_a_superlink_needs_its_host_in_the_certificate(federation: Federation) -> None:
    federation.wants(*COMPANIES, more="superlink_port = 8000\n")
    assert federation.provision().roster.content.coordinator.superlink == "127.0.0.1:8000"
    text = federation.file.read_text().replace("127.0.0.1:9443", "other.example:9443")
    federation.file.write_text(text)
    refused(federation, "coordinator request FOLDER --host other.example --rotate")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("'acme'", "'../acme'", "expected a company's name"),
        ("'acme'", "'Bravo'", "in case alone"),
        ("'acme'", "'bravo'", "in case alone, or not at all"),
        ("'acme'", "'coordinator'", "is the coordinator's"),
        ("'acme'", "'fedblocks-coordinator'", "is the coordinator's"),
        (":9443", ":99999", "port 99999 is above 65535"),
        (":9443", ":0", "a port other than 0"),
        ("valid_days = 365", "valid_days = 0", "valid_days=0"),
        ("valid_days", "valid_day", "unknown field"),
        ("[coordinator]", "[fingerprints]\nzulu = '0'\n[coordinator]", "fingerprints.zulu"),
        ("[coordinator]", "[fingerprints]\nacme = '0'\n[coordinator]", "expected a fingerprint"),
        ("['acme', 'bravo', 'charlie']", "[]", "companies"),
        ('"example"', '"ex\u202eample"', "name"),  # turns the line that shows the fingerprint
    ],
)
def test_a_federation_that_cannot_be_is_refused_by_field(
    federation: Federation, old: str, new: str, rule: str
) -> None:
    text = federation.file.read_text()
    assert old in text
    federation.file.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=rule):
        FederationSettings.load(federation.file)
    refused(federation, rule)


def test_a_rotation_whose_certificate_has_ended_begins_anew(federation: Federation) -> None:
    """Would catch a request that cannot be made again, since keys are never overwritten."""
    home = federation.home("acme")
    own_keys("company", home, "acme", days=0, rotate=True)
    ended = (home / "next/transport/own.pem").read_bytes()
    request = Request.of(own_keys("company", home, "acme", rotate=True))
    request.check_time("x")
    kept = [path.read_bytes() for path in (home / "former").rglob("*") if path.is_file()]
    assert ended in kept


def test_an_identity_that_is_there_already_stays(tmp_path: Path) -> None:
    """Made by `fedblocks identity` before there were kits; half a certificate's files are no certificate."""
    home = tmp_path / "home"
    home.mkdir()
    identity = Identity.generate()
    save_identity(home / "identity.key", identity)
    assert own_keys("company", home, "acme").identity.public == identity.public
    (home / "transport/own.pem").unlink()
    with pytest.raises(InputError, match=r"has one of own\.key and own\.pem alone"):
        own_keys("company", home, "acme")
