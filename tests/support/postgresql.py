"""A real PostgreSQL server of a test's own, from Debian's packages; it answers on a socket of its own alone."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "me"
_NOBODY = 65534
_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [
    Path(found).parent for name in ("initdb", "postgres") if (found := shutil.which(name))
]


@contextmanager
def server(password: str | None = None) -> Iterator[str]:
    """The URL of its database; with a `password`, which the URL does not hold, nobody gets in without it."""
    if not _PROGRAMS:
        pytest.skip("PostgreSQL is not installed")
    # Its own folder: the server must reach it as another user than root, and a socket's name has to be short.
    place = Path(tempfile.gettempdir()) / f"fedblocks-pg-{os.getpid()}-{secrets.token_hex(2)}"
    place.mkdir(mode=0o700)
    user = _NOBODY if os.geteuid() == 0 else None
    words: list[str | Path] = ["--auth=trust"]
    try:
        if password is not None:
            (place / "password").write_text(f"{password}\n")
            words = ["--auth=scram-sha-256", f"--pwfile={place / 'password'}"]
        if user is not None:
            for path in (place, *place.iterdir()):
                os.chown(path, user, user)
        subprocess.run(
            [_PROGRAMS[0] / "initdb", "-D", place / "data", "-U", USER, "--no-sync", *words],
            check=True, capture_output=True, user=user, timeout=120,
        )  # fmt: skip
        start = [
            _PROGRAMS[0] / "postgres",
            "-D",
            place / "data",
            "-k",
            place,
            "-c",
            "listen_addresses=",
            "-F",
        ]
        with subprocess.Popen(start, user=user, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "ready to accept connections" in line:
                    break
            try:
                yield f"postgresql+psycopg://{USER}@/postgres?host={place}"
            finally:
                process.terminate()
    finally:
        shutil.rmtree(place, ignore_errors=True)
