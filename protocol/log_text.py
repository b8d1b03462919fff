"""Escapes untrusted texts in logs: they cannot forge an entry, contain terminal escape sequences or be of any length.

This package and Flower log ids, names and errors that come from messages.
"""

from __future__ import annotations

import logging

_LONGEST_LINE, _MOST_LINES = 2000, 200


def printable(line: str) -> str:
    """The line, cut to a largest length, with characters that are not printable escaped."""
    cut = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}... ({len(line)} characters)"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def entry(text: str) -> str:
    """One entry of a log: lines after the first are indented, so that they cannot look like other entries."""
    lines = text.split("\n")
    if len(lines) > _MOST_LINES:
        # The last lines of a traceback say what happened.
        lines = [*lines[:10], f"... ({len(lines)} lines)", *lines[10 - _MOST_LINES :]]
    return "\n    ".join(map(printable, lines))


class Printable(logging.Filter):
    """Applies `entry` to every record, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception as error:  # logging itself would print the arguments
            text = f"a log entry that cannot be formatted ({type(error).__name__})"
        record.msg, record.args = entry(text), ()
        if record.exc_info:
            record.exc_text = "    " + entry(logging.Formatter().formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = "    " + entry(record.stack_info)
        return True


def escape_logs() -> None:
    """Escape Flower's log and the data plane's log in this process from now on."""
    for name in ("flwr", "fedblocks.transport"):
        logger = logging.getLogger(name)
        if not any(isinstance(old, Printable) for old in logger.filters):
            logger.addFilter(Printable())
