"""The malicious coordinator on trained blocks of the digits preset: trap weights, and what it makes up for one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....threat_model.attacks import crafted_weights
from ....threat_model.made_up import ATTEMPTS, attempts
from ....threat_model.results import Result
from ....threat_model.subject import Subject
from ...presets import load_settings
from ...simulation.preparation import prepare


def measure(seeds: int) -> dict[str, Any]:
    """Shares of examples rebuilt exactly over blocks and seeds; how many attempts were refused, and their codes."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in ("with", "without", "owned", "honest")}
    codes: dict[str, str | None] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = prepare(load_settings("digits", [f"seed={seed}"]), Path(folder) / "run")
            subject = Subject.of(run, seed=seed)
            for block in subject.blocks:
                results = crafted_weights.ATTACK.run(replace(subject, blocks=(block,)))
                exact, _, warned = (each for each in results if isinstance(each, Result))
                for name, estimate in (
                    ("with", exact.value), ("without", exact.control),
                    ("owned", warned.value), ("honest", warned.baseline),
                ):  # fmt: skip
                    assert estimate is not None
                    found[name].append(estimate.value)
            codes |= {each.name: each.code for each in attempts(run, subject.model, 0)}
    return {
        "trap_rows_recovered_without_noise": float(np.mean(found["without"])),
        "trap_rows_recovered_with_noise": float(np.mean(found["with"])),
        "trap_rows_warned": float(np.mean([count > 0 for count in found["owned"]])),
        "honest_rows_warned": float(np.mean([count > 0 for count in found["honest"]])),
        "refusals_shown": sum(code is not None for code in codes.values()),
        "refusals_asked": len(ATTEMPTS),
        "refusal_codes": codes,
    }
