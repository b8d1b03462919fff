"""A company's home folder before it has anything in it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..protocol import private_folder
from .policy_file import POLICY_FILE, first_policy


def make_home(home: Path, company: str, *, epsilon_ceiling: float, delta: float, **others: object) -> Path:
    """Make `home` with a first policy.toml; returns the policy's path. `others`: see `first_policy`.

    Raises: InputError as `private_folder.begin`, and where a value is not allowed.
    """
    if os.path.lexists(home / POLICY_FILE):  # before its rules are looked at
        raise InputError("HOME", str(home), f"has a {POLICY_FILE} already, which is left as it is")
    return private_folder.begin(
        "HOME", home, POLICY_FILE, first_policy(company, epsilon_ceiling, delta, **others)
    )
