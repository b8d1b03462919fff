"""The machine: disk, clock, cores and memory."""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from ..company import Company
from ..readiness import LEAST_FREE
from .findings import Findings

_LITTLE = 1 << 30  # bytes of a disk
_MADE = 1_735_689_600.0  # 2025: no clock that is set says less


def check_machine(company: Company, findings: Findings) -> None:
    free = shutil.disk_usage(company.home).free
    if free < LEAST_FREE:
        what = f"{free >> 20} MB are free on this disk, a round needs {LEAST_FREE >> 20}"
        findings.error("disk", company.home, what, "free some, or move the home to another disk")
    elif free < _LITTLE:
        what = f"only {free >> 20} MB are free on this disk"
        findings.warn("disk", company.home, what, "free some before a run: records and states grow")
    if company.clock() < _MADE:
        what = f"this machine's clock says {datetime.fromtimestamp(company.clock(), UTC):%Y-%m-%d}"
        findings.error("clock", "", what, "set it, as by NTP")
    cores, threads = len(os.sched_getaffinity(0)), company.policy.threads
    if threads is not None and threads > cores:
        what = f"{threads} threads, but this process may use {cores} cores"
        findings.warn("threads", "policy.toml, threads", what, f"write threads = {cores}")
    memory = available_memory()
    wanted = company.policy.memory_mb << 20
    if memory is not None and wanted > memory:
        what = f"a training pass may keep {company.policy.memory_mb} MB, {memory >> 20} MB are available"
        findings.error(
            "memory", "policy.toml, memory_mb", what, "lower it; smaller passes give the same result"
        )


def available_memory() -> int | None:
    """Bytes that this machine can still give; none where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1]) << 10
