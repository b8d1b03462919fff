"""The runs whose final model a company may be sent: those that it has joined, also after they are over.

HOME/models/awaited/JOINED.json, one file a run, named by the digest of what was joined. `joined.json` is removed at
the end of a run, and replaced when another one is joined; a company that was away at the end gets its copy later. The
newest MOST_AWAITED are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..protocol import private_file
from ..settings import Plan, validated_json
from .model_folders import MODELS

MOST_AWAITED = 16
_HEX = r"^[0-9a-f]{64}$"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    company: str
    plan: str
    joined: str = Field(pattern=_HEX)
    shared: str = Field(pattern=_HEX)


@dataclass(frozen=True)
class Awaited:
    """What was joined: the plan, and the digest of the shared state that the company has on its disk."""

    plan: Plan
    joined: bytes
    shared: bytes


@dataclass(frozen=True)
class AwaitedModels:
    """The files of one home."""

    home: Path
    company: str

    def save(self, awaited: Awaited) -> None:
        self._folder.parent.mkdir(mode=0o700, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        text = _File(
            company=self.company,
            plan=awaited.plan.model_dump_json(),
            joined=awaited.joined.hex(),
            shared=awaited.shared.hex(),
        ).model_dump_json()
        private_file.write(self._path(awaited.joined), text.encode())
        files = sorted(self._folder.glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-MOST_AWAITED]:
            path.unlink(missing_ok=True)

    def find(self, joined: bytes) -> Awaited | None:
        """None if nothing of this digest was joined, or the file is damaged or of another company."""
        if len(joined) != 32:
            return None
        try:
            found = _File.model_validate_json(self._path(joined).read_bytes())
            plan = validated_json(Plan, found.plan)
        except (OSError, ValidationError, InputError):
            return None
        if found.company != self.company or found.joined != joined.hex():
            return None
        return Awaited(plan, joined, bytes.fromhex(found.shared))

    @property
    def _folder(self) -> Path:
        return self.home / MODELS / "awaited"

    def _path(self, joined: bytes) -> Path:
        return self._folder / f"{joined.hex()}.json"
