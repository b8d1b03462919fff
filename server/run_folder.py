"""The folder of one run: what it is, what happened, what it produced.

runs/<id>/
    settings.toml      the resolved settings of the coordinator
    simulation.toml    in a simulation, the rest of its settings
    plan.json          what was offered to the companies
    pretrained.json    where the converted model lies that they name by its digest, if they do
    roster.toml        whose signatures the coordinator takes
    data.json          in a simulation, what was found in the data, and done to them
    evaluation/        public and, in a simulation, held-out private examples, in companies/ of it by company
    checkpoints/       round-0000 is the public model
    releases/          in a simulation, or where settings ask for it, every sum that was opened
    cohort.json        with real companies, who has joined, and their signed channel keys
    opened/            with real companies, the sums of the round in flight
    delivered.json     with real companies, who has the final model
    status.json        with real companies, how the run stands; see `standing`
    held.json          with real companies, why a run waits for a person; see `queue`
    metrics.jsonl      one line a round
    statements/        with real companies, what they say of the run's cost, NAME.json each
    companies/         in a simulation, the companies' homes
    representation.json  of a pretrained model, what it could do on public data before and can now
    result.json        the summary, when the run is complete
    audit.json, report.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .. import atomic_file
from ..blocks.pretrained.listed import register_listed
from ..errors import RunError
from ..privacy.secure_aggregation import ChannelKey, Roster
from ..protocol.identity import ROSTER_FILE, load_roster
from ..settings import (
    Plan,
    RunSettings,
    is_simulation,
    read_settings,
    read_text,
    refuse_injected_failures,
    validated_json,
    without_protocol,
    write_settings,
)

_COHORT = "cohort.json"


class _Task(BaseModel):
    """What is read of one block's training in a round."""

    model_config = ConfigDict(strict=True)

    round: int = Field(ge=1)
    block: int = Field(ge=0)
    status: str
    survivors: list[str]


class _Line(BaseModel):
    """What is read of a line of metrics; that of the public model, round 0, has no more than its quality."""

    model_config = ConfigDict(strict=True)

    round: int = Field(ge=0)
    status: str = ""
    survivors: list[str] = []
    absent: dict[str, tuple[str, str]] = {}
    quality: dict[str, list[float]] = {}
    tasks: list[_Task] = []

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.round and not {"status", "survivors", "absent"} <= self.model_fields_set:
            raise ValueError("a round says how it ended, and with whom")
        return self


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run; large ones are written by their own modules."""

    path: Path

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """An already prepared run."""
        if not (path / "settings.toml").is_file() or not (path / "plan.json").is_file():
            raise RunError(f"{path}: not a run folder (settings.toml or plan.json is missing)")
        register_listed(path)
        return cls(path.resolve())

    @classmethod
    def deployable(cls, path: Path) -> RunFolder:
        """As `existing`, for companies of their own, whose replies nobody is to lose on purpose."""
        run = cls.existing(path)
        refuse_injected_failures(run.path)
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def releases(self) -> Path:
        return self.path / "releases"

    @property
    def opened(self) -> Path:
        return self.path / "opened"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def companies(self) -> Path:
        return self.path / "companies"

    @property
    def own_heldout(self) -> Path:
        """In a simulation, NAME.npz: what each company held out; of these nothing is evaluated in a round."""
        return self.evaluation / "companies"

    def homes(self) -> list[Path]:
        """The homes of simulated companies by name; whatever else lies among them is passed over."""
        return sorted(home for home in self.companies.glob("*") if (home / "policy.toml").is_file())

    def simulated(self) -> bool:
        """Whether the companies are invented ones, whose homes lie here.

        A folder of invented companies that was served to real ones is none: there are homes, but no ledger in them of
        the rounds that were done, and no result of a simulation. Where that is not certain, it is a simulation, of
        which nothing is promised.
        """
        if not is_simulation(self.path):
            return False
        if without_protocol(self.path):
            return True
        summed = {name for row in self.metrics() for name in row.get("survivors", ())}
        homes = [home for home in self.homes() if home.name in summed]
        charged = any((home / "ledger.sqlite").is_file() for home in homes)
        return not homes or charged or (self.path / "result.json").is_file()

    @property
    def roster_file(self) -> Path:
        return self.path / ROSTER_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def settings(self) -> RunSettings:
        return read_settings(self.path)

    def plan(self) -> Plan:
        return validated_json(Plan, read_text("plan", self.path / "plan.json"))

    def roster(self) -> Roster:
        return load_roster(self.roster_file)

    def write_settings(self, settings: RunSettings, plan: Plan) -> None:
        atomic_file.write(self.path / "plan.json", plan.model_dump_json(indent=2).encode())
        write_settings(self.path, settings)

    def load_cohort(self, digest: bytes) -> dict[str, ChannelKey]:
        """The companies that have joined under this digest of plan and shared state; empty if none has."""
        found = self.read_json(_COHORT) or {}
        if found.get("settings_digest") != digest.hex():
            return {}
        keys = found.get("channels", {})
        return {
            name: ChannelKey(bytes.fromhex(key), bytes.fromhex(sign)) for name, (key, sign) in keys.items()
        }

    def save_cohort(self, digest: bytes, channels: Mapping[str, ChannelKey]) -> None:
        keys = {name: (key.public.hex(), key.signature.hex()) for name, key in sorted(channels.items())}
        self.write_json(_COHORT, {"settings_digest": digest.hex(), "channels": keys})

    def metrics(self) -> list[dict[str, Any]]:
        """The rounds so far. Raises: RunError where a line is not what was appended."""
        if not self.metrics_file.is_file():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.metrics_file.read_bytes().splitlines(keepends=True):
            try:
                _Line.model_validate_json(line)
                rows.append(json.loads(line))
            except ValueError:
                if not line.endswith(b"\n"):
                    break  # torn by a crash; its round was not checkpointed and will be run again
                where = f"{self.metrics_file} line {len(rows) + 1}"
                raise RunError(f"{where}: not a round's metrics; put the file back as it was") from None
        return rows

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_metrics_after(self, round_: int) -> None:
        """Drop lines of rounds that were not checkpointed; they will be run again.

        Raises: RunError where a line of a checkpointed round is gone, which no crash explains.
        """
        kept = [row for row in self.metrics() if row["round"] <= round_]
        if round_ and [row["round"] for row in kept] != list(range(round_ + 1)):
            raise RunError(f"{self.metrics_file}: lacks rounds that were done; put it back from a copy")
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_file.write(self.metrics_file, text.encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this run, or none if it has not been written. Raises: RunError where it holds no object."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RunError(f"{path}: not a whole JSON object; make it again, or remove it")
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        atomic_file.write(self.path / name, json.dumps(value, indent=2).encode())
