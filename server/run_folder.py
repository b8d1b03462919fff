"""The folder of one run: what it is, what happened, what it produced.

runs/<id>/
    settings.toml      the resolved settings
    plan.json          what was offered to the companies
    roster.toml        whose signatures the coordinator takes
    data.json          in a simulation, what was found in the data, and done to them
    evaluation/        public and, in a simulation, held-out private examples
    checkpoints/       round-0000 is the public model
    metrics.jsonl      one line a round
    companies/         in a simulation, the companies' homes
    result.json        the summary, when the run is complete
    audit.json, report.html
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from .. import atomic_file
from ..errors import InputError, RunError
from ..privacy.secure_aggregation import Roster
from ..protocol.identity import ROSTER_FILE, load_roster
from ..settings import Plan, Settings, load_settings, validated_json


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run; large ones are written by their own modules."""

    path: Path

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """An already prepared run."""
        if not (path / "settings.toml").is_file() or not (path / "plan.json").is_file():
            raise RunError(f"{path}: not a run folder (settings.toml or plan.json is missing)")
        return cls(path.resolve())

    @classmethod
    def deployable(cls, path: Path) -> RunFolder:
        """As `existing`, for companies of their own, whose replies nobody is to lose on purpose."""
        run = cls.existing(path)
        rate = run.settings().companies.dropout.rate
        if rate > 0:
            raise InputError("companies.dropout.rate", rate, "only `fedblocks simulate` injects failures")
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def companies(self) -> Path:
        return self.path / "companies"

    @property
    def roster_file(self) -> Path:
        return self.path / ROSTER_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def settings(self) -> Settings:
        return load_settings(str(self.path / "settings.toml"))

    def plan(self) -> Plan:
        return validated_json(Plan, (self.path / "plan.json").read_text("utf-8"))

    def roster(self) -> Roster:
        return load_roster(self.roster_file)

    def write_settings(self, settings: Settings, plan: Plan) -> None:
        atomic_file.write(self.path / "plan.json", plan.model_dump_json(indent=2).encode())
        values = settings.model_dump(mode="json", exclude_none=True)
        if settings.privacy.epsilon is None:
            values["privacy"]["epsilon"] = "none"
        atomic_file.write(self.path / "settings.toml", tomli_w.dumps(values).encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        if not self.metrics_file.is_file():
            return []
        rows = []
        for line in self.metrics_file.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # a line torn by a crash; its round was not checkpointed and will be run again
        return rows

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_metrics_after(self, round_: int) -> None:
        """Drop lines of rounds that were not checkpointed; they will be run again."""
        kept = [row for row in self.metrics() if row["round"] <= round_]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_file.write(self.metrics_file, text.encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this run, or none if it has not been written."""
        path = self.path / name
        if not path.is_file():
            return None
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        atomic_file.write(self.path / name, json.dumps(value, indent=2).encode())
