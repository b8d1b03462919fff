"""Names of companies: they stand in file names, certificates, logs and rosters."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import InputError

COMPANY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# Any text in one line that a terminal shows as it is: no control characters, none that turn the direction of a line.
FEDERATION_NAME = r"^( |[^\p{C}\p{Z}])*$"

# The coordinator's certificate is pinned, so its name need not be the host's.
COORDINATOR = "fedblocks-coordinator"
# Files of these names are the coordinator's, beside those of companies.
_RESERVED = {COORDINATOR, "coordinator", "provisioner"}


def check_company_name(field: str, name: str) -> None:
    """InputError unless a company may have this name."""
    if not re.fullmatch(COMPANY_NAME, name):
        rule = (
            "expected a company's name: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
        raise InputError(field, name, rule)
    if name.lower() in _RESERVED:
        raise InputError(field, name, "this name is the coordinator's; choose another for the company")


def check_distinct(field: str, names: Iterable[str]) -> None:
    """InputError for two names that are equal, or would be in a file system that ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other is not name:
            raise InputError(field, name, f"differs from {other!r} in case alone, or not at all; rename one")
