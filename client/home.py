"""A company's home folder before it has anything in it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..protocol import private_file
from .policy_file import POLICY_FILE, first_policy

MODE = 0o700


def make_home(home: Path, company: str, *, epsilon_ceiling: float, delta: float) -> Path:
    """Make `home`, of mode 700, with a first policy.toml; returns the policy's path.

    A folder that is there already is used if its owner alone has access to it.

    Raises: InputError where there is a policy already, the folder is open to others, or a value is not allowed.
    """
    policy = home / POLICY_FILE
    if os.path.lexists(policy):
        raise InputError("HOME", str(home), "has a policy.toml already, which is left as it is")
    text = first_policy(company, epsilon_ceiling, delta)
    if not home.is_dir():
        if os.path.lexists(home):
            raise InputError("HOME", str(home), "is a file, expected a folder")
        home.mkdir(parents=True, mode=MODE)
        home.chmod(MODE)  # whatever the umask
    elif home.stat().st_mode & 0o077:
        rule = f"this folder is open to others; make it your own first: chmod 700 {home}"
        raise InputError("HOME", str(home), rule)
    try:
        private_file.create(policy, text.encode())
    except FileExistsError:
        raise InputError("HOME", str(home), "has a policy.toml already, which is left as it is") from None
    return policy
