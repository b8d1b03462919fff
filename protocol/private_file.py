"""Files of a company's home: only their owner has access, from the moment they are created.

Files that fedblocks writes are set back to mode 600 if their mode was widened. Files that the company wrote (its
data, keys and rules) are not changed but refused by name: others may have read them already, which only the company
can judge. Refused too: files of other users, who can widen or replace them at any time, and links, whose targets are
not checked.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .. import atomic_file
from ..errors import PrivacyError

_OURS = (
    "ledger.sqlite*",
    "steps.sqlite*",
    "company.log*",
    "agent.json",
    "agent.out",
    "decisions.jsonl",
    "data.json",
    "shared-*.safetensors",
    "joined.json",
    "release-*.bin",
    "release.lock",
    "prefix.bin",
    "personal.safetensors",
)
_THEIRS = (
    "policy.toml",
    "roster.toml",
    "identity.key",
    "data.npz",
    "held_out.npz",
    "held_out.key",
    "transport/own.key",
    "transport/node.key",
)
# These may be read by others, but not changed.
_PUBLIC = ("transport/transport.toml", "transport/own.pem", "transport/coordinator.pem")


def opener(path: str, flags: int) -> int:
    """An opener for `open` that creates files with mode 600, whatever the umask."""
    return os.open(path, flags, atomic_file.OWNER_ONLY)


def create(path: Path, content: bytes) -> None:
    """Write a new file of mode 600; FileExistsError if there is one."""
    with atomic_file.creating(path, mode=atomic_file.OWNER_ONLY) as draft:
        draft.write_bytes(content)


def write(path: Path, content: bytes) -> None:
    """Create or replace a file, with mode 600."""
    atomic_file.write(path, content, mode=atomic_file.OWNER_ONLY)


def mode_for_others(path: Path) -> int | None:
    """The file's mode if it gives others any access, else None."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else None


def check_home(home: Path) -> None:
    """Check modes and owners in a home, and set those of fedblocks' own files to 600.

    Raises:
        PrivacyError: names the first file or folder that others may use, own or replace.
    """
    for check in _checks(home):
        check()
    for path in _ours(home.resolve()):
        if _check(path, 0, "600") & 0o077:
            path.chmod(atomic_file.OWNER_ONLY)


def faults(home: Path) -> list[str]:
    """What `check_home` would raise, of every file and folder; nothing is changed."""
    checks: list[Callable[[], object]] = list(_checks(home))
    checks += [partial(_check, path, 0, "600") for path in _ours(home.resolve())]
    found = []
    for check in checks:
        try:
            check()
        except PrivacyError as error:
            found.append(str(error))
    return found


def _checks(home: Path) -> Iterator[Callable[[], object]]:
    real = home.resolve()
    for folder in dict.fromkeys((home.absolute().parent, real.parent)):
        yield partial(_check_parent, folder)
    # From here on nobody else can replace what was checked.
    yield partial(_check, real, 0o077, "700", folder=True)
    yield partial(_check, real / "transport", 0o022, "700", folder=True)
    yield partial(_check, real / "models", 0o077, "700", folder=True)
    for name in _THEIRS:
        yield partial(_check, real / name, 0o077, "600")
    for name in _PUBLIC:
        yield partial(_check, real / name, 0o022, "600")


def _ours(real: Path) -> list[Path]:
    found = [path for path in real.iterdir() if any(path.match(pattern) for pattern in _OURS)]
    return [*found, real / "transport/lock"]


def _check_parent(folder: Path) -> None:
    """Refuse a parent folder that others may write to, and so replace the home, unless its sticky bit is set."""
    mode = folder.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise PrivacyError(
            f"{folder} around this home may be changed by others (mode {stat.S_IMODE(mode):03o}): "
            f"chmod go-w {shlex.quote(str(folder))}"
        )


def _check(path: Path, barred: int, wanted: str, *, folder: bool = False) -> int:
    """The mode of a file or folder, 0 if there is none; links are not followed.

    Raises:
        PrivacyError: it is a link, of another user, or has some of the `barred` bits.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    mode, quoted, kind = stat.S_IMODE(found.st_mode), shlex.quote(str(path)), "folder" if folder else "file"
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
        raise PrivacyError(f"{path} is a link or no {kind}: put the {kind} itself there: mv TARGET {quoted}")
    if found.st_uid != os.geteuid():
        raise PrivacyError(
            f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}: chown {os.geteuid()} {quoted}"
        )
    if mode & barred:
        raise PrivacyError(
            f"{path} is open to others (mode {mode:03o}, expected {wanted}): chmod {wanted} {quoted}"
        )
    return mode
