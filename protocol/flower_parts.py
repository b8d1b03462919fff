"""What both sides need of Flower's inside: parts of its modules replaced by ours, and a bundle without any code."""

from __future__ import annotations

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from flwr.supercore.fab import Fab

_PROJECT = """
[project]
name = "{name}"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedblocks"

[tool.flwr.app.components]
serverapp = "{coordinator}"
clientapp = "{companies}"

[tool.flwr.app.config]
"""


def project_file(name: str, coordinator: str, companies: str) -> str:
    """The pyproject.toml of two Flower apps, each as `module:attribute`; keys of the run's config may follow it."""
    return _PROJECT.format(name=name, version=__version__, coordinator=coordinator, companies=companies)


@lru_cache(maxsize=1)
def own_bundle() -> Fab:
    """A Flower bundle with a project file and nothing else in it."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.supercore.fab import Fab

    with tempfile.TemporaryDirectory() as folder:
        text = project_file("fedblocks", "fedblocks.server.app:app", "fedblocks.client.app:app")
        (Path(folder) / "pyproject.toml").write_text(text, "utf-8")
        content = build_fab_from_disk(Path(folder))
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


def put_in_place(module: ModuleType, name: str, new: object) -> Any:
    """Replace an object in a module of Flower's; returns the old one. RuntimeError if there is none."""
    old = vars(module).get(name)
    if old is None:
        raise RuntimeError("this version of Flower works in a way that cannot be guarded")
    setattr(module, name, new)
    return old
