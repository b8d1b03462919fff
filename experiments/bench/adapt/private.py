"""What privacy leaves of the gain that companies have from adapting a public model together.

The preset `minilm-text`: five companies of some 2,000 texts each. Every kind of training begins from its own public
model; the gain is over the best of these, and the gain without privacy is the largest of the same rounds without
clipping's noise.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...presets import load_settings
from ...simulation.preparation import prepare, read_inputs
from ...simulation.reference import prepare_reference
from ...simulation.simulate import simulate

PRESET = "minilm-text"
KINDS = ("lora", "bias", "block")
_UTILITY_ALONE = "protocol=off"


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`private_gain_kept`: the share of the gain that the best kind of training keeps in the preset's mode."""
    rows = [_of_seed(seed, on_progress) for seed in range(seeds)]
    mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    public = max(mean[f"public {kind}"] for kind in KINDS)
    gain = max(mean[f"without noise {kind}"] for kind in KINDS) - public
    kept = {name: (value - public) / gain for name, value in mean.items() if name.startswith("epsilon")}
    best = max(KINDS, key=lambda kind: kept[f"epsilon 8 {kind}"])
    return {
        "private_gain_kept": round(kept[f"epsilon 8 {best}"], 4),
        "private_best": best,
        "private_gain_kept_local": round(kept["epsilon 8 local"], 4),
        "private_gain_kept_by_epsilon": {
            "1": round(kept["epsilon 1"], 4), "3": round(kept["epsilon 3"], 4),
            "8": round(kept[f"epsilon 8 {best}"], 4),
        },
        "private_accuracy": {name: round(value, 4) for name, value in mean.items()},
        "private_accuracy_std": {
            name: round(statistics.pstdev([row[name] for row in rows]), 4) for name in mean
        },
    }  # fmt: skip


def _of_seed(seed: int, on_progress: Callable[[str], None]) -> dict[str, float]:
    found: dict[str, float] = {}
    inputs = read_inputs(load_settings(PRESET, [f"seed={seed}", _UTILITY_ALONE]))

    def run(name: str, *changes: str, reference: str | None = None) -> float:
        settings = load_settings(PRESET, [f"seed={seed}", _UTILITY_ALONE, *changes])
        with tempfile.TemporaryDirectory(prefix="fedblocks-private-") as folder:
            prepared = prepare(settings, Path(folder) / "run", inputs=inputs)
            result = simulate(prepared)
            found[name] = result["accuracy"]
            if reference is not None:
                found[f"public {reference}"] = result["accuracy_public_model"]
                found[f"without noise {reference}"] = simulate(prepare_reference(prepared))["accuracy"]
                on_progress(
                    f"seed {seed} without noise {reference}: {found[f'without noise {reference}']:.4f}"
                )
        on_progress(f"seed {seed} {name}: {found[name]:.4f}, public {result['accuracy_public_model']:.4f}")
        return found[name]

    for kind in KINDS:
        run(f"epsilon 8 {kind}", f"model.trains={kind}", reference=kind)
    best = max(KINDS, key=lambda kind: found[f"epsilon 8 {kind}"])
    for epsilon in (1, 3):
        run(f"epsilon {epsilon}", f"model.trains={best}", f"privacy.epsilon={epsilon}.0")
    run("epsilon 8 local", f"model.trains={best}", "privacy.mode=local")
    return found
