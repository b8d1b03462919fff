"""A company's Flower SuperNode that runs the installed ClientApp, whatever a SuperLink says a run is.

Flower hands a company the bundle of the run's apps and starts what it finds in it, beside the company's data; whoever
reaches the SuperLink's control port chooses that bundle. Here it is never fetched: the SuperNode is given one of this
package's own instead, which has no code and names the installed app.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError
from .company import Company

if TYPE_CHECKING:
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

_PROJECT = f"""
[project]
name = "fedblocks"
version = "{__version__}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedblocks"

[tool.flwr.app.components]
serverapp = "fedblocks.server.app:app"
clientapp = "fedblocks.client.app:app"

[tool.flwr.app.config]
"""
_TASKS = {"", "flwr-serverapp"}
_OURS = ("--node-config", "--isolation", "--allow-runtime-dependency-installation")

# Flower's connection to a SuperLink, and the places in it of the functions that ask for a run and for its bundle.
_CONNECT = "http_request_response"
_CALLBACKS, _GET_RUN, _GET_FAB = 8, 3, 4


@lru_cache(maxsize=1)
def own_bundle() -> Fab:
    """A Flower bundle with a project file and nothing else in it."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.supercore.fab import Fab

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(_PROJECT, "utf-8")
        content = build_fab_from_disk(Path(folder))
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def installed_app_only(connect: Callable[..., Any], log: Callable[[str], None]) -> Callable[..., Any]:
    """`connect` (Flower's connection to a SuperLink), with the installed app in every run's place."""
    from flwr.supercore.run import RunNotRunningException

    own = own_bundle()

    @contextmanager
    def guarded(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as callbacks:
            if len(callbacks) != _CALLBACKS:
                raise RuntimeError("this version of Flower connects in a way that cannot be guarded")

            def get_run(run_id: int) -> Run:
                run: Run = callbacks[_GET_RUN](run_id)
                if run.primary_task_type not in _TASKS:
                    log(f"refused run {run_id}: it is not a run of a ServerApp")
                    # The SuperNode then drops the message, and has kept nothing of the run.
                    raise RunNotRunningException
                return replace(
                    run,
                    fab_id="fedblocks/fedblocks",
                    fab_version=__version__,
                    fab_hash=own.hash_str,
                    override_config={},
                )

            def get_fab(fab_hash: str, run_id: int) -> Fab:
                return own

            yield *callbacks[:_GET_RUN], get_run, get_fab, *callbacks[_GET_FAB + 1 :]

    return guarded


def check_options(options: list[str]) -> None:
    """Refuse what this command sets itself, shortened as argparse lets it be or not; InputError."""
    for option in options:
        name = option.split("=")[0]
        if len(name) > 2 and any(own.startswith(name) for own in _OURS):
            raise InputError(option, None, "is set by this command, and may not be given")


def serve(home: Path, options: list[str]) -> None:
    """Run Flower's SuperNode for the company at `home`; `options` are flower-supernode's own."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    check_options(options)
    home = home.resolve()
    if '"' in str(home) or "\\" in str(home):
        raise InputError("HOME", str(home), "must not have a quote or a backslash in its path")
    company = Company.deployed(home)
    connect = installed_app_only(vars(start_client_internal)[_CONNECT], company.log)
    setattr(start_client_internal, _CONNECT, connect)
    sys.argv = ["flower-supernode", *options, "--node-config", f'company-home="{home}"']
    # Flower runs what lies unpacked under a bundle's name already: in a new folder nothing does.
    with tempfile.TemporaryDirectory(prefix="fedblocks-") as folder:
        os.environ["FLWR_HOME"] = folder
        flower_supernode()
