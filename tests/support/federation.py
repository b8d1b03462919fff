"""A federation on one machine: federation.toml, requests made at each company, kits, and homes to install them in."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol import fingerprints, signed_text
from fedblocks.protocol.federation import kit
from fedblocks.protocol.federation.installing import Installed, install_company, install_coordinator
from fedblocks.protocol.federation.keys import own_keys
from fedblocks.protocol.federation.provisioner import Provisioned, provision
from fedblocks.protocol.federation.request import Request
from fedblocks.protocol.identity import load_identity
from fedblocks.protocol.names import COORDINATOR

COMPANIES = ("acme", "bravo", "charlie")


@dataclass(frozen=True)
class Federation:
    """`office` is the provisioner's folder, `homes` hold the companies' homes and the coordinator's, `plane`."""

    office: Path
    homes: Path

    @classmethod
    def at(cls, folder: Path, *companies: str, port: int = 9443, more: str = "") -> Federation:
        made = cls(folder / "office", folder / "homes")
        (made.office / "requests").mkdir(parents=True)
        made.homes.mkdir(mode=0o755)
        made.wants(*(companies or COMPANIES), port=port, more=more)
        return made

    def wants(self, *companies: str, port: int = 9443, days: int = 365, more: str = "") -> None:
        """Write federation.toml."""
        text = f'name = "example"\ncompanies = {list(companies)}\nvalid_days = {days}\n'
        text += f'[coordinator]\naddress = "127.0.0.1:{port}"\nlisten = "127.0.0.1:{port}"\n{more}'
        self.file.write_text(text)

    @property
    def file(self) -> Path:
        return self.office / "federation.toml"

    def home(self, company: str) -> Path:
        return self.homes / company

    @property
    def plane(self) -> Path:
        return self.homes / "plane"

    def ask(self, *companies: str, rotate: bool = False) -> None:
        """Each company makes its keys at home, and its request reaches the provisioner; so does the coordinator's."""
        for name in companies or COMPANIES:
            keys = own_keys("company", self.home(name), name, rotate=rotate)
            (self.office / "requests" / f"{name}.request").write_bytes(Request.of(keys).file)
        lead = own_keys("coordinator", self.plane, COORDINATOR, hosts=["127.0.0.1"])
        (self.office / "requests" / "coordinator.request").write_bytes(Request.of(lead).file)

    def provision(self, **options: object) -> Provisioned:
        return provision(self.file, **options)  # type: ignore[arg-type]

    @property
    def identity(self) -> Identity:
        """The provisioner's."""
        return load_identity(self.office / "provisioner.key")

    @property
    def fingerprint(self) -> str:
        return fingerprints.of_provisioner(self.identity.public)

    def kit(self, name: str) -> Path:
        return self.office / "kits" / f"{name}.zip"

    @property
    def roster(self) -> Path:
        return self.office / "roster.toml"

    def install(self, company: str, path: Path | None = None, **options: object) -> Installed:
        options = {"fingerprint": self.fingerprint, **options}
        return install_company(path or self.kit(company), self.home(company), **options)  # type: ignore[arg-type]

    def install_plane(self, path: Path | None = None, **options: object) -> Installed:
        options = {"fingerprint": self.fingerprint, **options}
        return install_coordinator(path or self.kit("coordinator"), self.plane, **options)  # type: ignore[arg-type]

    def all_installed(self) -> None:
        for name in COMPANIES:
            self.install(name)
        self.install_plane()


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(
    files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda entry: None
) -> bytes:
    """A zip of these files, whose entries are changed before they are written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            change(entry)
            archive.writestr(entry, content)
    return buffer.getvalue()


def signed_manifest(files: dict[str, bytes], by: Identity, name: str, role: str = "company") -> bytes:
    """A manifest for these files, as a provisioner of any kind would sign it."""
    import hashlib

    import tomli_w

    digests = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    text = tomli_w.dumps({"federation": "example", "role": role, "name": name, "files": digests})
    return signed_text.sign(kit.KIND, text, by).content


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder by path, without locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
