"""`audit.json` and `audit_images.npz` as they are read back: of the types that an audit writes, and at one with
themselves.

A verdict is kept as it was judged, whatever a later version would say; but one that its own numbers deny, or a view
that has lost its control, would make a report say what no attack has found.
"""

from __future__ import annotations

import json
import math
import zlib
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from ...errors import RunError
from ...server.run_folder import RunFolder
from ..attack_budget import AttackBudget
from ..metrics import Score
from ..verdicts import TITLES, Outcome

Images = dict[str, npt.NDArray[np.float32]]


class _View(BaseModel):
    name: str
    outcome: Outcome
    cases: int = Field(ge=1)
    exact: int = Field(ge=0)
    control_exact: int | None = Field(ge=0)
    reidentified: int = Field(ge=0)
    reidentified_by_prior: int = Field(ge=0)
    rows: dict[str, dict[str, Score]]
    gain: dict[str, Score]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        noised = self.name != "raw_gradient"
        expected = {"released", "prior", "random"} | ({"control"} if noised else set())
        counts = (self.exact, self.control_exact or 0, self.reidentified, self.reidentified_by_prior)
        psnr = [each for scores in (*self.rows.values(), self.gain) for each in [scores.get("psnr")]]
        if (
            self.rows.keys() != expected
            or (self.control_exact is None) == noised
            or max(counts) > self.cases
            or (self.outcome == "recovered") != (self.exact > 0)
            or any(s is None or not math.isfinite(s.mean + s.low + s.high + s.worst) for s in psnr)
        ):
            raise ValueError("a view that does not agree with itself")
        return self


class _Settings(BaseModel):
    budget: AttackBudget
    candidates: int


class _Audit(BaseModel):
    attack: str
    block: int
    round: int
    exact_psnr: float = Field(allow_inf_nan=False)
    settings: _Settings
    views: list[_View]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if [view.name for view in self.views] != list(TITLES):
            raise ValueError("not the views that an audit has")
        return self


def read_audit_file(run: RunFolder) -> dict[str, Any] | None:
    """What a report reads of an audit; none if the run has not been audited. Raises: RunError for anything else."""
    raw = run.read_json("audit.json")
    if raw is None:
        return None
    try:
        # As JSON: there the strict mode takes a table for a `Score`.
        return _Audit.model_validate_json(json.dumps(raw), strict=True).model_dump()
    except ValueError:
        rule = "audit.json is of another version of fedblocks or was changed; audit the run again, or remove the file"
        raise RunError(f"{run.path}: {rule}") from None


def read_images(run: RunFolder) -> Images:
    """The pictures of each view and condition, (n, C, S, S); none without the file. Raises: RunError if damaged."""
    path = run.path / "audit_images.npz"
    if not path.is_file():
        return {}
    images: Images = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            images = {name: file[name] for name in file.files}
        whole = all(
            each.ndim == 4
            and each.dtype.kind == "f"
            and each.shape == images[f"{name.partition('.')[0]}.original"].shape
            for name, each in images.items()
        )
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        MemoryError,
        NotImplementedError,
        BadZipFile,
        zlib.error,
    ):
        whole = False
    if not whole:
        raise RunError(f"{path}: damaged; audit the run again, or remove the file")
    return images
