"""Tables of a database, by its SQLAlchemy URL: `sqlite:///sales.db`, `postgresql://host/name`.

A password never stands in a URL, which is kept in run folders, shown in errors and seen by whoever lists processes.
It comes from the driver's own place (PGPASSWORD, .pgpass), from the variable FEDBLOCKS_DATABASE_PASSWORD, or from
what `using_password` was given. What the driver says of an error is not repeated: it may hold values and names.

With SQLite and PostgreSQL a query is one statement that only reads: the contract in which it stands may be somebody
else's, as a coordinator's. PostgreSQL is asked for the rows of a cursor, which takes no other statement and no second
one, in a read-only transaction; SQLite refuses whatever is not reading, as VACUUM INTO another file.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ....errors import InputError
from ....settings.contract import FileContract

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import URL, Connection

_POSTGRESQL = "postgresql+psycopg"
_READING = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_TRANSACTION,
}  # fmt: skip
PASSWORD_VARIABLE = "FEDBLOCKS_DATABASE_PASSWORD"
_URL = re.compile(r"^[a-z][a-z0-9+]*://")
_SECRET = re.compile(r"pass|pwd|secret|token|credential", re.IGNORECASE)
_SIGNS = {
    "password authentication failed": "the password or the user's name is wrong",
    "no password supplied": "a password is needed",
    "access denied": "the password or the user's name is wrong",
    "connection refused": "nothing listens at this address",
    "could not translate host name": "no such host",
    "failed to resolve host": "no such host",
}
_given: ContextVar[SecretStr | None] = ContextVar("database_password", default=None)


def is_database(source: str) -> bool:
    return _URL.match(source) is not None


@contextmanager
def using_password(password: SecretStr | None) -> Iterator[None]:
    """Databases that are read meanwhile get this password; none: that of the variable, or the driver's own."""
    token = _given.set(password)
    try:
        yield
    finally:
        _given.reset(token)


def password_file(path: Path) -> SecretStr:
    """The first line of a file that its owner alone may read. Raises: InputError, which does not quote it."""
    try:
        if path.stat().st_mode & 0o077:
            raise InputError(
                "--password-file", str(path), f"is open to others: chmod 600 {shlex.quote(str(path))}"
            )
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--password-file", str(path), f"cannot be read ({type(error).__name__})") from None
    if not lines or not lines[0]:
        raise InputError("--password-file", str(path), "its first line is empty, expected the password")
    return SecretStr(lines[0])


def check_url(field: str, source: str) -> URL:
    """The URL, if it holds no password. Raises: InputError, which shows none."""
    import sqlalchemy as sql
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = sql.make_url(source)
    except (SQLAlchemyError, ValueError):
        url = None
    if url is None:
        raise InputError(field, "database", "not a URL that SQLAlchemy reads")
    if url.password is not None or any(_SECRET.search(name) for name in url.query):
        shown = url.set(query={}).render_as_string(hide_password=True)
        rule = (
            f"give the password in PGPASSWORD or {PASSWORD_VARIABLE}, or in a file by --password-file, not in the "
            "URL; change it if it was used there, for others can see a process's words"
        )
        raise InputError(field, shown, rule)
    return url


def read_database(field: str, source: str, contract: FileContract) -> pd.DataFrame:
    """All rows of the contract's table or query. Raises: InputError in one line."""
    url = check_url(field, source)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise InputError(field, source, "no such file")
    if contract.table is None and contract.query is None:
        raise InputError(field, source, "name the table, or a query, in a contract")
    found = _rows(url, contract)
    # Raised here, where no error of a driver is being handled that would be kept beside it.
    if isinstance(found, str):
        raise InputError(field, source, found)
    return found


def _rows(url: URL, contract: FileContract) -> pd.DataFrame | str:
    """The rows, or why there are none."""
    import pandas as pd
    import sqlalchemy as sql
    from sqlalchemy.exc import SQLAlchemyError

    if url.get_backend_name() == "postgresql":
        if url.drivername not in ("postgresql", _POSTGRESQL):  # others take several statements at once
            return f"is read by psycopg alone: begin the URL with {_POSTGRESQL}://"
        url = url.set(drivername=_POSTGRESQL)
    try:
        # No pool: it would print the driver's error, and what it quotes, where a connection cannot be reset.
        engine = sql.create_engine(_with_password(url), poolclass=sql.NullPool, pool_reset_on_return=None)
        try:
            with engine.connect() as connection:
                connection = _only_read(connection)
                statement = contract.query
                if statement is None:
                    quoted = engine.dialect.identifier_preparer.quote(contract.table or "")
                    statement = f"SELECT * FROM {quoted}"
                return pd.read_sql_query(sql.text(statement), connection)
        finally:
            engine.dispose()
    except ModuleNotFoundError as error:
        name = error.name or ""
        wanted = "'fedblocks[postgresql]'" if name.startswith("psycopg") else name
        return f"its driver is not installed: pip install {wanted}"
    except (SQLAlchemyError, pd.errors.DatabaseError) as error:
        # The driver's own error has the plainest name, and a text that may hold values.
        told = getattr(error.__cause__ or error, "orig", None) or error
        return f"not readable ({_plain(told)})"


def _with_password(url: URL) -> URL:
    given = _given.get()
    password = os.environ.get(PASSWORD_VARIABLE) if given is None else given.get_secret_value()
    return url if not password or url.get_backend_name() == "sqlite" else url.set(password=password)


def _only_read(connection: Connection) -> Connection:
    """The connection, for reading alone where its database is one of the two that can be held to it."""
    if connection.dialect.name == "sqlite":
        # What stands in the file, as a view's functions, is not trusted either.
        for rule in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.exec_driver_sql(f"PRAGMA {rule}")
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
        )
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        return connection.execution_options(stream_results=True)
    return connection


def _plain(error: object) -> str:
    """The kind of a driver's error, and what it is about where a fixed word can say that."""
    text = str(error).lower()
    told = next((words for sign, words in _SIGNS.items() if sign in text), getattr(error, "sqlstate", None))
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
