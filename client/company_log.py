"""The company's own log, HOME/company.log: what happened and why; texts of errors stay here.

A line an entry, or a JSON object with `use_json`; times are local, with their offset from UTC. At ten megabytes the
file becomes company.log.1, and so on up to five. Only its owner may read it, from its creation. Several processes of
one home write to it: an agent, its worker, commands.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from ..protocol import private_file
from ..protocol.log_text import entry

LOG_FILE = "company.log"
_LARGEST, _KEPT = 10 << 20, 5
_json = False


def use_json(wanted: bool) -> None:
    """Whether the logs that this process begins from now on are JSON lines."""
    global _json
    _json = wanted


def company_logger(home: Path) -> logging.Logger:
    """The logger of one home; its file is opened with the first entry."""
    logger = logging.getLogger(f"fedblocks.company.{home}")
    if not logger.handlers:
        logger.propagate = False
        logger.setLevel(logging.INFO)
        handler = _LogFile(
            home / LOG_FILE, encoding="utf-8", delay=True, maxBytes=_LARGEST, backupCount=_KEPT
        )
        handler.setFormatter(_JsonLines() if _json else _Lines("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    return logger


def close_log(home: Path) -> None:
    """Close the file of one home's log; the next entry opens it again."""
    for handler in company_logger(home).handlers:
        handler.close()


class _LogFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=private_file.opener)

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None and self._moved(self.stream):
            self.stream.close()
            self.stream = None  # as before the first entry
        super().emit(record)

    def _moved(self, stream: TextIOWrapper) -> bool:
        """Whether another process has begun a new file."""
        try:
            return not os.path.samestat(os.stat(self.baseFilename), os.fstat(stream.fileno()))
        except FileNotFoundError:
            return True


class _Lines(logging.Formatter):
    """Escapes texts from messages, so that they cannot look like entries."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return entry(super().format(record))


class _JsonLines(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
