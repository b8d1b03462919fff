"""What an install lets in, and what it leaves as it was: everything, whenever it refuses."""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from support.federation import COMPANIES, Federation, entries, rezipped, signed_manifest, snapshot

from fedblocks.client.company import Company
from fedblocks.client.endpoint import Endpoint
from fedblocks.client.policy import Policy
from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol import private_file
from fedblocks.protocol.federation.keys import key_files
from fedblocks.protocol.identity import load_roster
from fedblocks.protocol.roster import SignedRoster
from fedblocks.protocol.transport import PinnedCertificates
from fedblocks.server.stream import ServiceSettings
from fedblocks.settings import DataKind

YEAR = timedelta(days=365)
KIND = DataKind(inputs=(8,), targets=(), target_classes=2)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The widest that is common."""
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Provisioned with keys made at home; nothing is installed yet."""
    tmp_path.chmod(0o755)
    made = Federation.at(tmp_path)
    made.ask()
    made.provision()
    return made


def keys_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in key_files("company")}


def test_an_installed_home_is_what_agent_and_coordinator_read(federation: Federation) -> None:
    """By the code that reads it: keys, roster, address, certificates, modes; the company's keys stay its own."""
    before = {name: keys_in(federation.home(name)) for name in COMPANIES}
    federation.all_installed()
    for name in COMPANIES:
        home = federation.home(name)
        assert keys_in(home) == before[name]
        policy = Policy(company=name, epsilon_ceiling=1.0, delta=1e-5, data=KIND)
        private_file.write(home / "policy.toml", tomli_w.dumps(policy.model_dump(exclude_none=True)).encode())
        company = Company.deployed(home)
        company.check_files()
        assert set(company.member().roster.members) == set(COMPANIES)
        endpoint = Endpoint.of(home)
        assert endpoint.settings.address == "127.0.0.1:9443"
        assert endpoint.coordinator == (federation.plane / "own.pem").read_bytes()
        assert endpoint.notices() == []
    settings = ServiceSettings.load(federation.plane)
    assert settings.listen == "127.0.0.1:9443"
    settings.service(federation.plane, "run").close()
    pinned = PinnedCertificates.load(federation.plane / "companies")
    assert pinned.companies == COMPANIES
    assert all(pinned.owner((federation.home(n) / "transport/own.pem").read_bytes()) == n for n in COMPANIES)
    wide = [path for path in federation.homes.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert wide == []


def test_keys_of_a_trial_arrive_with_the_kit_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    federation = Federation.at(tmp_path)
    federation.provision(trial=True)
    federation.all_installed()
    for name in COMPANIES:
        assert keys_in(federation.home(name)) == keys_in(federation.office / "trial" / name)
    wide = [path for path in tmp_path.rglob("*.key") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    wide += [path for path in tmp_path.rglob("*.zip") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert wide == []


def refused(
    federation: Federation, rule: str, company: str = "acme", path: Path | None = None, **options: object
) -> None:
    """An install that ends in an InputError with this rule, and has changed no file."""
    before = snapshot(federation.homes)
    with pytest.raises(InputError, match=rule):
        federation.install(company, path, **options)
    assert snapshot(federation.homes) == before


def test_a_first_install_needs_the_fingerprint_that_was_read_out(federation: Federation) -> None:
    """In any of the ways in which people write it down; would catch trust on first use."""
    refused(federation, "a first install trusts nobody", fingerprint=None)
    refused(federation, "do not install it", fingerprint="0" * 32)
    refused(federation, "expected a fingerprint", fingerprint="0" * 31)
    spoken = federation.fingerprint
    refused(federation, "do not install it", fingerprint=spoken[:-1] + ("0" if spoken[-1] != "0" else "1"))
    for i, text in enumerate(
        (spoken.upper(), spoken.replace(" ", ""), spoken.replace(" ", ":"), f" {spoken} ")
    ):
        assert federation.install("acme", fingerprint=text).written or i > 0
    assert federation.install("acme", fingerprint=None).written == ()  # known by now


def test_a_kit_for_another_is_refused_with_both_names(federation: Federation) -> None:
    """Also one with keys, and one for the other role."""
    refused(federation, "is for 'bravo', and .* is the home of 'acme'", path=federation.kit("bravo"))
    refused(federation, "is for the coordinator; install it with: fedblocks coordinator install",
            path=federation.kit("coordinator"))  # fmt: skip
    with pytest.raises(InputError, match="is for the company"):
        federation.install_plane(federation.kit("acme"))
    other = Federation.at(federation.office.parent / "other")
    other.provision(trial=True)
    refused(federation, "is for 'bravo', and", path=other.kit("bravo"), fingerprint=other.fingerprint)


def test_the_policy_says_whose_home_it_is(federation: Federation) -> None:
    """A home that has a policy and no certificate yet."""
    home = federation.homes / "new"
    home.mkdir()
    (home / "policy.toml").write_text('company = "bravo"')
    refused(
        federation, "is for 'acme', and .* is the home of 'bravo'", company="new", path=federation.kit("acme")
    )


def test_what_has_expired_is_refused_with_its_date(federation: Federation) -> None:
    later = datetime.now(UTC) + YEAR
    refused(federation, f"version 1 expired on {later:%Y-%m-}", now=later + timedelta(days=1))
    refused(federation, "set the clock", now=datetime.now(UTC) - timedelta(days=2))
    federation.install("acme", now=later - timedelta(days=1))
    federation.install("bravo", now=datetime.now(UTC) - timedelta(hours=12))  # clocks differ


def test_no_older_roster_is_taken_after_a_newer_one(federation: Federation) -> None:
    """A rollback would bring a revoked company back: as a kit, as a roster, at the company and the coordinator."""
    old_kit, old_roster = federation.kit("acme").read_bytes(), federation.roster.read_bytes()
    federation.provision(renew=True)
    federation.all_installed()
    path = federation.office / "old"
    for content in (old_kit, old_roster):
        path.write_bytes(content)
        refused(federation, "version 1 is older than the installed version 2", path=path)
    before = snapshot(federation.plane)
    with pytest.raises(InputError, match="version 1 is older than the installed version 2"):
        federation.install_plane(path)
    assert snapshot(federation.plane) == before


def test_two_rosters_of_one_version_are_not_taken_one_after_the_other(federation: Federation) -> None:
    federation.install("acme")
    content = SignedRoster.parse(federation.roster.read_bytes(), "x").content
    other = content.model_copy(update={"expires": content.expires + YEAR})
    path = federation.office / "other.toml"
    path.write_bytes(SignedRoster.sign(other, federation.identity).file)
    refused(federation, "is another version 1 than the installed one", path=path)


def test_another_provisioner_or_federation_takes_nobody_over(federation: Federation) -> None:
    """Not even one whose fingerprint is given: would catch a stranger who calls first."""
    federation.install("acme")
    content = SignedRoster.parse(federation.roster.read_bytes(), "x").content
    stranger, path = Identity.generate(), federation.office / "stranger.toml"
    newer = content.model_copy(update={"version": 9})
    path.write_bytes(SignedRoster.sign(newer, stranger).file)
    refused(federation, "signed by .* the installed roster by", path=path, fingerprint=None)
    spoken = federation.fingerprint
    refused(federation, "do not install it", path=path, fingerprint=spoken)
    from fedblocks.protocol.fingerprints import of_provisioner

    refused(
        federation,
        "signed by .* the installed roster by",
        path=path,
        fingerprint=of_provisioner(stranger.public),
    )
    path.write_bytes(
        SignedRoster.sign(newer.model_copy(update={"federation": "x"}), federation.identity).file
    )
    refused(federation, "is of the federation 'x'", path=path)


def test_a_roster_with_other_keys_is_refused_and_says_which(federation: Federation) -> None:
    """Would catch an install that leaves a home whose every signature the others refuse."""
    content = SignedRoster.parse(federation.roster.read_bytes(), "x").content
    path = federation.office / "other.toml"
    for changes, said in (
        (
            {"companies": content.companies | {"acme": Identity.generate().public.hex()}},
            "another identity of acme",
        ),
        ({"node_keys": content.node_keys | {"acme": content.node_keys["bravo"]}}, "another node key of acme"),
    ):
        path.write_bytes(SignedRoster.sign(content.model_copy(update=changes), federation.identity).file)
        refused(federation, said, path=path)
    (federation.home("acme") / "identity.key").unlink()
    refused(federation, "holds no private key, and .* has none")


def test_a_key_that_others_may_read_is_not_used(federation: Federation) -> None:
    (federation.home("acme") / "identity.key").chmod(0o640)
    with pytest.raises(PrivacyError, match=r"identity\.key may be read by others"):
        federation.install("acme")


def test_who_is_revoked_cannot_install_and_is_refused_by_all_others(federation: Federation) -> None:
    """From the roster alone, without anybody else's keys changing."""
    federation.all_installed()
    keys = {name: keys_in(federation.home(name)) for name in COMPANIES}
    federation.wants("acme", "bravo", "delta")
    federation.ask("delta")
    federation.provision()
    refused(federation, "charlie was revoked in version 2", company="charlie", path=federation.roster)
    charlie = (federation.home("charlie") / "transport/own.pem").read_bytes()
    for name in ("acme", "bravo"):
        done = federation.install(name, federation.roster)
        assert done.changes == "delta only in the new one; charlie only in the roster before"
        assert "charlie" not in load_roster(federation.home(name) / "roster.toml").members
    federation.install_plane(federation.roster)
    pinned = PinnedCertificates.load(federation.plane / "companies")
    assert pinned.companies == ("acme", "bravo", "delta")
    assert pinned.owner(charlie) is None
    federation.install("delta")
    assert {name: keys_in(federation.home(name)) for name in COMPANIES} == keys
    wide = [path for path in federation.homes.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert wide == []


def test_a_rotation_uses_the_old_keys_until_the_roster_has_the_new_ones(federation: Federation) -> None:
    federation.all_installed()
    home, old = federation.home("acme"), keys_in(federation.home("acme"))
    federation.ask("acme", rotate=True)
    assert keys_in(home) == old
    federation.install("acme")  # the roster of before still fits
    assert keys_in(home) == old
    others = {name: snapshot(federation.home(name)) for name in ("bravo", "charlie")}
    made = federation.provision()
    assert made.changes == {"added": [], "revoked": [], "rotated": ["acme"]}
    done = federation.install("acme")
    assert done.keys == "rotated"
    new = keys_in(home)
    assert all(new[name] != old[name] for name in old)
    assert not (home / "next").exists()
    kept = [path.read_bytes() for path in (home / "former").rglob("*") if path.is_file()]
    assert all(content in kept for content in old.values())
    assert {name: snapshot(federation.home(name)) for name in others} == others
    for name in others:
        assert federation.install(name, federation.roster).changes == "another key of acme"
        assert keys_in(federation.home(name)).items() <= others[name].items()


def test_nothing_of_an_earlier_set_up_is_lost(federation: Federation) -> None:
    """A hand-written roster, the patience that somebody has set, files of nobody's: kept, here or in former/."""
    home = federation.home("acme")
    settings, roster = (
        b'address = "127.0.0.1:9000"\npatience = 20\n',
        b'[companies]\nx = "' + b"0" * 64 + b'"\n',
    )
    private_file.write(home / "transport/transport.toml", settings)
    private_file.write(home / "roster.toml", roster)
    private_file.write(home / "notes.txt", b"mine")
    federation.install("acme")
    assert Endpoint.of(home).settings.patience == 20
    assert Endpoint.of(home).settings.address == "127.0.0.1:9443"
    kept = [path.read_bytes() for path in (home / "former").rglob("*") if path.is_file()]
    assert settings in kept
    assert roster in kept
    assert (home / "notes.txt").read_bytes() == b"mine"
    private_file.write(federation.plane / "transport.toml", b'listen = "127.0.0.1:1"\ngather = 5\n')
    federation.install_plane()
    assert ServiceSettings.load(federation.plane).gather == 5


def test_a_file_that_cannot_be_read_is_named_before_anything_is_written(federation: Federation) -> None:
    """The company's own settings, which an install completes; also where keys come with the kit."""
    private_file.write(federation.home("acme") / "transport/transport.toml", b"address = ")
    refused(federation, r"transport\.toml.*not valid TOML")
    other = Federation.at(federation.office.parent / "other")
    other.provision(trial=True)
    home = other.home("acme")
    (home / "transport").mkdir(parents=True)
    private_file.write(home / "transport/transport.toml", b"address = ")
    refused(other, r"transport\.toml.*not valid TOML")


@pytest.mark.parametrize("writes", range(1, 12))
def test_an_install_that_was_cut_short_is_done_by_the_next(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A disk that is full after any number of files, in a rotation, which writes the most."""
    federation.all_installed()
    home, old = federation.home("acme"), keys_in(federation.home("acme"))
    federation.ask("acme", rotate=True)
    new = keys_in(home / "next")
    federation.provision()
    write, left = private_file.write, [writes]

    def failing(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(private_file, "write", failing)
        try:
            federation.install("acme")
        except OSError:
            assert left[0] < 0
    federation.install("acme")
    assert keys_in(home) == new
    assert SignedRoster.parse((home / "roster.toml").read_bytes(), "x").version == 2
    kept = [path.read_bytes() for path in (home / "former").rglob("*") if path.is_file()]
    assert all(content in kept for content in old.values())


def test_what_is_compared_with_a_pin_is_compared_in_constant_time(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprint, provisioner's key, identity and certificate: each goes through hmac.compare_digest."""
    compared: set[bytes] = set()
    real: Callable[..., bool] = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.update((bytes(one), bytes(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    federation.install("acme")
    federation.install("acme")
    content = SignedRoster.parse(federation.roster.read_bytes(), "x")
    from fedblocks.protocol.transport.certificates import fingerprint

    assert {
        federation.fingerprint.encode(),
        content.signer,
        bytes.fromhex(content.content.companies["acme"]),
        fingerprint(content.certificates["acme"]),
    } <= compared


def test_a_kit_signed_by_a_stranger_is_refused_whole(federation: Federation) -> None:
    """With a roster of the stranger's and manifest to fit: only the fingerprint can tell, and it does."""
    stranger, path = Identity.generate(), federation.office / "kit.zip"
    content = SignedRoster.parse(federation.roster.read_bytes(), "x").content
    files = {"roster.toml": SignedRoster.sign(content, stranger).file}
    path.write_bytes(rezipped(files | {"kit.toml": signed_manifest(files, stranger, "acme")}))
    refused(federation, "do not install it", path=path)
    assert entries(path).keys() == entries(federation.kit("acme")).keys()
