"""Texts that come with Python."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path


def _topics() -> str:
    """The language reference that every Python ships for its `help()`: nearly half a million characters."""
    from pydoc_data import topics

    return "\n".join(topics.topics[key] for key in sorted(topics.topics))


@cache
def _docstrings() -> str:
    """The docstrings of this Python's standard library, by module name: 1.7 million characters."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(n for n in sys.stdlib_module_names if n not in ("test", "idlelib", "pydoc_data"))
    found: list[str] = []
    for name in names:
        for file in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
            if file.is_file() and "test" not in file.relative_to(root).parts:
                found += _docstrings_of(file)
    return "\n".join(found)


def _docstrings_of(file: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates and code of other versions lie there too
        return
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text:
            yield f"{text}\n"


BUILT_IN: dict[str, Callable[[], str]] = {"python-topics": _topics, "python-docstrings": _docstrings}
