"""The company's own log: its owner's alone from the first byte, of bounded size, and one entry a line."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedblocks.client import company_log
from fedblocks.client.company_log import company_logger, use_json


def test_a_full_log_is_set_aside_and_every_part_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a log that fills the disk, and a second file that others may read."""
    monkeypatch.setattr(company_log, "_LARGEST", 1000)
    logger = company_logger(tmp_path)
    for i in range(200):
        logger.info("line %d", i)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == ["company.log", *(f"company.log.{n}" for n in range(1, 6))]
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in parts} == {0o600}
    assert sum((tmp_path / name).stat().st_size for name in parts) <= 6000
    assert "line 199" in (tmp_path / "company.log").read_text()


def test_two_processes_write_to_one_log_and_either_may_set_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent and its worker. Would catch lines of the one that go on into the file that the other has set aside."""
    monkeypatch.setattr(company_log, "_LARGEST", 1000)
    agent = company_logger(tmp_path)
    agent.info("first of the agent")
    code = (
        "import sys; from pathlib import Path; from fedblocks.client import company_log; "
        "company_log._LARGEST = 1000; logger = company_log.company_logger(Path(sys.argv[1])); "
        "[logger.info('line %d', i) for i in range(40)]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "company.log.1").exists()
    agent.info("second of the agent")
    assert "second of the agent" in (tmp_path / "company.log").read_text()


@pytest.mark.parametrize("wanted", [False, True])
def test_an_entry_is_one_line_whatever_is_in_it(tmp_path: Path, wanted: bool) -> None:
    """Would catch a text from a message that looks like an entry of the log, and times without their zone."""
    use_json(wanted)
    try:
        logger = company_logger(tmp_path)
    finally:
        use_json(False)
    logger.info("a\n2026-01-01T00:00:00.000+00:00 INFO joined run evil")
    logger.info("b")
    lines = (tmp_path / "company.log").read_text().splitlines()
    zoned = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d")
    if wanted:
        assert [json.loads(line)["message"][:1] for line in lines] == ["a", "b"]
        assert all(zoned.match(json.loads(line)["time"]) for line in lines)
    else:
        assert [line for line in lines if zoned.match(line)] == [lines[0], lines[-1]]
