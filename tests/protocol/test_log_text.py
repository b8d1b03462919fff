"""Texts that came with a message, in the logs of this package's processes: read as text, whatever is in them."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from flwr.supercore.logger import ConsoleHandler
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedblocks.cli import main as cli
from fedblocks.errors import RunError
from fedblocks.protocol.log_text import Printable, entry, escape_logs

ESCAPE = "\x1b[2J\x1b]0;title\x07\rINFO :      done\nINFO :      all is well\u202e\x9b31m\u2028"


@pytest.fixture
def printed() -> Iterator[io.StringIO]:
    """What Flower's own handler writes to the terminal, without its colours."""
    logger, out = logging.getLogger("flwr"), io.StringIO()
    handler, before = ConsoleHandler(colored=False, stream=out), list(logger.filters)
    logger.addHandler(handler)
    escape_logs()
    yield out
    logger.removeHandler(handler)
    for added in set(logger.filters) - set(before):
        logger.removeFilter(added)


def harmless(text: str) -> bool:
    """One entry: nothing that a terminal acts on, and no second line that begins like one."""
    first, *rest = text.removesuffix("\n").split("\n")
    return first.isprintable() and all(line.startswith("    ") and line.isprintable() for line in rest)


def test_flowers_log_has_no_escape_sequence_and_no_entry_of_another(printed: io.StringIO) -> None:
    """As Flower logs the run, the round and the type of a message that it has received."""
    logging.getLogger("flwr").log(logging.INFO, "[RUN %s, ROUND %s]", 1, ESCAPE)
    assert harmless(printed.getvalue())
    assert "\\x1b[2J" in printed.getvalue()


def test_a_traceback_is_escaped_as_well(printed: io.StringIO) -> None:
    try:
        raise ValueError(ESCAPE)
    except ValueError as error:
        logging.getLogger("flwr").log(logging.ERROR, "%s raised an exception", "ClientApp", exc_info=error)
    assert "ValueError: \\x1b[2J" in printed.getvalue()
    assert harmless(printed.getvalue())


def test_an_entry_that_cannot_be_formatted_is_one_all_the_same(printed: io.StringIO) -> None:
    class Bad:
        def __str__(self) -> str:
            raise ValueError(ESCAPE)

    logging.getLogger("flwr").log(logging.INFO, "%s", Bad())
    assert "cannot be formatted (ValueError)" in printed.getvalue()


def test_a_percent_sign_of_theirs_is_no_placeholder(printed: io.StringIO) -> None:
    logging.getLogger("flwr").log(logging.INFO, "%s", "%s %(name)s %d")
    assert "%s %(name)s %d" in printed.getvalue()


def test_a_text_does_not_fill_the_disk() -> None:
    assert len(entry("x" * 10_000_000)) < 3000
    assert len(entry("x\n" * 1_000_000)) < 10_000
    assert entry("a\n" * 1000 + "the last line").endswith("the last line")


@given(st.text())
def test_every_text_is_one_entry(text: str) -> None:
    assert harmless(entry(text))
    record = logging.LogRecord("flwr", logging.INFO, "", 0, text, (), None)
    assert Printable().filter(record)
    assert harmless(record.getMessage())


def test_an_error_on_the_command_line_is_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A coordinator is told a name by a company, and says that it is the wrong one."""

    def raising(**named: object) -> None:
        raise RunError(f"company-1 says it is {ESCAPE}")

    monkeypatch.setattr(cli, "app", raising)
    monkeypatch.setattr(cli, "people", Console(file=sys.stderr, force_terminal=False))
    with pytest.raises(SystemExit):
        cli.main()
    assert harmless(capsys.readouterr().err)


def test_the_filter_is_put_there_once(printed: io.StringIO) -> None:
    escape_logs()
    for name in ("flwr", "fedblocks.transport"):
        assert sum(isinstance(f, Printable) for f in logging.getLogger(name).filters) == 1
