"""A company's Flower SuperNode that runs the installed ClientApp, whatever bundle the coordinator sends.

Flower hands a company the code of the run's bundle and starts it beside the company's data; whoever reaches the
SuperLink's control port chooses that code. Here a bundle is refused before it is stored unless it has no code at all
and names this package's own app.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, ProtocolError
from .company import Company

_FILES = {"pyproject.toml", "README.md", ".info/CONTENT"}
_COMPONENTS = {"serverapp": "fedblocks.server.app:app", "clientapp": "fedblocks.client.app:app"}
_TASKS = {"", "flwr-serverapp"}
_LARGEST = 1 << 20
_OURS = ("--node-config", "--allow-runtime-dependency-installation")

# Flower's connection to a SuperLink, and the places in it of the functions that ask for a run and for its bundle.
_CONNECT = "http_request_response"
_CALLBACKS, _GET_RUN, _GET_FAB = 8, 3, 4


def check_bundle(content: bytes) -> tuple[str, str]:
    """Refuse a bundle (a zip file) that could bring anything to run; returns its Flower id and version.

    Raises ProtocolError("foreign_code").
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            entries = bundle.infolist()
            names = [entry.filename for entry in entries]
            if len(names) > len(set(names)) or not set(names) <= _FILES:
                raise _foreign(f"files other than {', '.join(sorted(_FILES))}, or one of them twice")
            if sum(entry.file_size for entry in entries) > _LARGEST:
                raise _foreign(f"more than {_LARGEST} bytes")
            with bundle.open("pyproject.toml") as file:
                project = tomllib.loads(file.read(_LARGEST).decode())
        flower = project["tool"]["flwr"]["app"]
        if flower["components"] != _COMPONENTS:
            raise _foreign("other apps than those of the installed package")
        return f"{flower['publisher']}/{project['project']['name']}", project["project"]["version"]
    except ProtocolError:
        raise
    except Exception as error:  # whatever a zip file or a table can be wrong in
        raise _foreign(f"no readable bundle ({type(error).__name__})") from None


def check_run(run: Any, identity: str, version: str) -> None:
    """Refuse a run that Flower would look up under another name than its bundle's, or that is no ServerApp's."""
    if (run.fab_id, run.fab_version) != (identity, version):
        raise _foreign("its name or version is not that of its bundle")
    if run.primary_task_type not in _TASKS:
        raise _foreign("it is not a run of a ServerApp")


def _foreign(what: str) -> ProtocolError:
    return ProtocolError("foreign_code", f"the run's bundle was refused: {what}")


def installed_apps_only(connect: Callable[..., Any], log: Callable[[str], None]) -> Callable[..., Any]:
    """`connect` (Flower's connection to a SuperLink), with every bundle checked before a SuperNode keeps it."""
    from flwr.supercore.run import RunNotRunningException

    @contextmanager
    def guarded(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as callbacks:
            if len(callbacks) != _CALLBACKS:
                raise RuntimeError("this version of Flower connects in a way that cannot be guarded")
            get_run, get_fab = callbacks[_GET_RUN : _GET_FAB + 1]
            runs: dict[
                int, Any
            ] = {}  # as the SuperNode was told: asked again, a coordinator may say something else

            def remembered(run_id: int) -> Any:
                runs[run_id] = get_run(run_id)
                return runs[run_id]

            def checked(fab_hash: str, run_id: int) -> Any:
                fab = get_fab(fab_hash, run_id)
                try:
                    if not fab.hash_str == fab_hash == hashlib.sha256(fab.content).hexdigest():
                        raise _foreign("it is not what its hash says")
                    check_run(runs.pop(run_id), *check_bundle(fab.content))
                except ProtocolError as error:
                    log(f"refused run {run_id}: {error}")
                    # The SuperNode then drops the message, and has kept nothing of run or bundle.
                    raise RunNotRunningException from None
                return fab

            yield *callbacks[:_GET_RUN], remembered, checked, *callbacks[_GET_FAB + 1 :]

    return guarded


def serve(home: Path, options: list[str]) -> None:
    """Run Flower's SuperNode for the company at `home`; `options` are flower-supernode's own."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    for option in options:
        if option.split("=")[0] in _OURS:
            raise InputError(option, None, "is set by this command, and may not be given")
    if '"' in str(home) or "\\" in str(home):
        raise InputError("HOME", str(home), "must not have a quote or a backslash in its path")
    company = Company.deployed(home)
    os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    connect = installed_apps_only(vars(start_client_internal)[_CONNECT], company.log)
    setattr(start_client_internal, _CONNECT, connect)
    sys.argv = ["flower-supernode", *options, "--node-config", f'company-home="{home.resolve()}"']
    flower_supernode()
