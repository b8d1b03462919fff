"""What a library raises over private data, told without them.

A reader's own exceptions quote what it could not read: pyarrow the cell, json the line, a database the row. As a
traceback that would stand on stderr, in a service's journal and in whatever gathers logs. Where the program is at
fault, the line that failed is enough to find it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

from ...errors import FedblocksError, InputError

_PACKAGE = Path(__file__).resolve().parents[2]


@contextmanager
def told_in_one_line(field: str, source: str) -> Iterator[None]:
    """Errors of the package, of memory and of a missing library pass; of others kind and place are told alone.

    Raises: InputError, whose traceback shows no other error.
    """
    try:
        yield
    except (FedblocksError, MemoryError, ModuleNotFoundError):
        raise
    except OSError as error:
        rule = f"not readable ({error.strerror or type(error).__name__})"
        raise InputError(field, source, rule) from None
    except Exception as error:
        ours = [f for f in extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PACKAGE)]
        place = f", {Path(ours[-1].filename).name} line {ours[-1].lineno}" if ours else ""
        rule = (
            f"holds something that is not read ({type(error).__name__}{place}); see docs/data.md for what is"
        )
        raise InputError(field, source, rule) from None
