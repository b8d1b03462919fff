"""What may be in a kit, and what a kit that somebody else has made can do to who opens it: nothing."""

from __future__ import annotations

import io
import resource
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.federation import COMPANIES, Federation, entries, rezipped, signed_manifest, snapshot

from fedblocks.errors import InputError
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol.federation.keys import key_files
from fedblocks.protocol.federation.kit import LARGEST_KIT, unpacked


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Companies that made their keys at home, and their kits."""
    made = Federation.at(tmp_path_factory.mktemp("federation"))
    made.ask()
    made.provision()
    return made


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = Federation.at(tmp_path_factory.mktemp("trial"))
    made.provision(trial=True)
    return made


def secrets_of(folder: Path, role: str = "company") -> list[bytes]:
    """The lines of a party's private keys, and the identity's raw bytes."""
    found = []
    for name in key_files(role):  # type: ignore[arg-type]
        content = (folder / name).read_bytes()
        if name == "identity.key":
            found += [content.strip(), bytes.fromhex(content.decode())]
        elif name.endswith(".key"):
            found += [line for line in content.splitlines() if line and not line.startswith(b"-----")]
    return found


def test_a_private_key_that_was_made_at_home_is_nowhere_else(federation: Federation) -> None:
    """In no kit, no request, no roster: would catch any file that takes one along, whole or a line of it."""
    places = [(federation.home(name), "company") for name in COMPANIES] + [(federation.plane, "coordinator")]
    secrets = [secret for folder, role in places for secret in secrets_of(folder, role)]
    assert len(secrets) > 4 * 4
    for path, content in snapshot(federation.office).items():
        unzipped = b"".join(entries(federation.office / path).values()) if path.endswith(".zip") else b""
        assert not any(secret in content or secret in unzipped for secret in secrets), path
    for name in (*COMPANIES, "coordinator"):
        assert set(entries(federation.kit(name))) == {"kit.toml", "roster.toml"}


def test_in_a_trial_each_kit_has_its_own_party_s_keys_alone(trial: Federation) -> None:
    for name in COMPANIES:
        others = [n for n in COMPANIES if n != name]
        content = b"".join(entries(trial.kit(name)).values())
        assert all(secret in content for secret in secrets_of(trial.office / "trial" / name)[:1])
        for other in others:
            assert not any(secret in content for secret in secrets_of(trial.office / "trial" / other)[:2])


def test_the_same_federation_gives_the_same_bytes(federation: Federation, trial: Federation) -> None:
    """Would catch a time or an order that gets into a kit."""
    for made, more in ((federation, False), (trial, True)):
        before = snapshot(made.office)
        made.provision(trial=more)
        assert snapshot(made.office) == before
        with zipfile.ZipFile(made.kit("acme")) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_no_changed_byte_of_a_kit_gets_past_the_signatures(trial: Federation, tmp_path: Path) -> None:
    """What is read from an altered zip is what was signed, or an InputError."""
    content, signed = trial.kit("acme").read_bytes(), unpacked(trial.kit("acme"))
    altered, path = 0, tmp_path / "kit.zip"
    for i in range(0, len(content), 5):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x11]) + content[i + 1 :])
        try:
            read = unpacked(path)
        except InputError:
            altered += 1
            continue
        assert (read.manifest, read.roster.file, read.keys) == (
            signed.manifest,
            signed.roster.file,
            signed.keys,
        )
    assert altered > len(content) // 5 * 0.8


@pytest.mark.parametrize("end", [0, 10, 100, -200, -1])
def test_a_kit_that_is_cut_short_is_refused(federation: Federation, tmp_path: Path, end: int) -> None:
    path = tmp_path / "kit.zip"
    path.write_bytes(federation.kit("acme").read_bytes()[:end])
    with pytest.raises(InputError, match="kit"):
        unpacked(path)


def link(entry: zipfile.ZipInfo) -> None:
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


def device(entry: zipfile.ZipInfo) -> None:
    entry.create_system, entry.external_attr = 3, (stat.S_IFCHR | 0o666) << 16


def compressed(entry: zipfile.ZipInfo) -> None:
    entry.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize("change", [link, device, compressed])
def test_links_devices_and_what_can_unpack_to_more_are_refused(
    federation: Federation, tmp_path: Path, change: Callable[[zipfile.ZipInfo], None]
) -> None:
    path = tmp_path / "kit.zip"
    path.write_bytes(rezipped(entries(federation.kit("acme")), change))
    with pytest.raises(InputError, match="compressed, encrypted or a link"):
        unpacked(path)


@pytest.mark.parametrize(
    "name",
    [
        "../roster.toml",
        "/etc/cron.d/x",
        "transport/../../x",
        "C:\\x",
        "policy.toml",
        "roster.toml/",
        "ROSTER.TOML",
        "",
    ],
)
def test_a_name_that_no_kit_has_is_refused_and_nothing_is_written(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    """Also with a valid manifest: a provisioner cannot put a file wherever it likes, a policy least of all."""
    files = {"roster.toml": federation.roster.read_bytes(), name: b"x"}
    files["kit.toml"] = signed_manifest(files, federation.identity, "acme")
    path = tmp_path / "in" / "kit.zip"
    path.parent.mkdir()
    path.write_bytes(rezipped(files))
    before = snapshot(tmp_path), snapshot(federation.homes)
    with pytest.raises(InputError, match="which no kit does"):
        federation.install("acme", path)
    assert (snapshot(tmp_path), snapshot(federation.homes)) == before


def test_a_zip_bomb_takes_no_memory(federation: Federation, tmp_path: Path) -> None:
    """A quarter of a gigabyte of zeros, under an expected name, and with headers that say it is small, or stored."""
    path = tmp_path / "kit.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("roster.toml", "w") as file,
    ):
        for _ in range(256):
            file.write(bytes(1 << 20))
    content = path.read_bytes()
    lying = content.replace(struct.pack("<I", 256 << 20), struct.pack("<I", 100))
    method = content.index(b"PK\x01\x02") + 10  # in the central directory
    stored = content[:method] + b"\x00\x00" + content[method + 2 :]
    assert lying != content != stored
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (content, lying, stored):
        path.write_bytes(bomb)
        with pytest.raises(InputError):
            unpacked(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # in kB


def test_sizes_and_counts_are_limited_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "kit.zip"
    with path.open("wb") as file:
        file.truncate(LARGEST_KIT + 1)
    with pytest.raises(InputError, match="larger than 8 MB"):
        unpacked(path)
    path.write_bytes(rezipped({f"{i}": b"" for i in range(17)}))
    with pytest.raises(InputError, match="17 files"):
        unpacked(path)
    path.write_bytes(rezipped({"identity.key": bytes((1 << 16) + 1)}))
    with pytest.raises(InputError, match="larger than it may be"):
        unpacked(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("roster.toml", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("roster.toml", b"2")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="which no kit does"):
        unpacked(path)


def test_keys_that_the_manifest_does_not_vouch_for_are_refused(
    federation: Federation, trial: Federation, tmp_path: Path
) -> None:
    """Somebody on the way adds keys to a kit, or puts in a manifest of their own, or mixes two kits."""
    path, stranger = tmp_path / "kit.zip", Identity.generate()
    good, keys = entries(federation.kit("acme")), entries(trial.kit("acme"))
    added = good | {name: keys[name] for name in key_files("company")}
    body = {name: content for name, content in added.items() if name != "kit.toml"}
    mixed = keys | {"kit.toml": entries(trial.kit("bravo"))["kit.toml"]}
    for files, rule in (
        (added, "other files than its manifest"),
        (body | {"kit.toml": signed_manifest(body, stranger, "acme")}, "signed with two keys"),
        (mixed, "was altered"),
        ({k: v for k, v in keys.items() if k != "identity.key"}, "other files than its manifest"),
        ({k: v for k, v in keys.items() if k != "roster.toml"}, "roster.toml is missing"),
        ({k: v for k, v in keys.items() if k != "kit.toml"}, "kit.toml is missing"),
    ):
        path.write_bytes(rezipped(files))
        with pytest.raises(InputError, match=rule):
            unpacked(path)
