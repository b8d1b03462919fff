"""What privacy leaves of the gain that companies have from adapting a public model together.

The preset `minilm-text`: five companies of some 2,000 texts each. The first seed compares the kinds of training, each
from its own public model, with and without noise; every seed has the best of them. The first seed also has the curve
over epsilon, and noise of each company's own ("local").
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...presets import load_settings
from ...simulation.preparation import Inputs, prepare, read_inputs
from ...simulation.reference import prepare_reference
from ...simulation.simulate import simulate

PRESET = "minilm-text"
# Whole weights need lower rates, in public and at companies.
KINDS: dict[str, tuple[str, ...]] = {
    "bias": ("model.trains=bias",),
    "lora": ("model.trains=lora", "model.lora_rank=4", "model.lora_alpha=4.0"),
    "block": ("model.trains=block", "pretraining.learning_rate=2e-4", "training.server_learning_rate=0.001"),
}
_UTILITY_ALONE = ("protocol=off", "training.evaluate_every=30")
Found = dict[str, float]


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`private_gain_kept`: the share of the gain that the best kind of training keeps in the preset's mode, by the
    means over seeds; `private_accuracy`: of the first seed, by kind of training, noise and epsilon."""
    first = _Seed(0, on_progress)
    by_kind = {kind: first.run(*changes, reference=True) for kind, changes in KINDS.items()}
    best = max(KINDS, key=lambda kind: by_kind[kind]["private"])
    trains, rows = KINDS[best], [by_kind[best]]
    rows += [_Seed(seed, on_progress).run(*trains, reference=True) for seed in range(1, seeds)]
    mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    others = {f"epsilon {epsilon}": first.run(*trains, f"privacy.epsilon={epsilon}.0") for epsilon in (1, 3)}
    others["local"] = first.run(*trains, "privacy.mode=local")
    kept = {name: _kept(by_kind[best] | {"private": found["private"]}) for name, found in others.items()}
    # The strictest reading: over the best public model, of the largest gain of any kind.
    public = max(row["public"] for row in by_kind.values())
    largest = max(row["without noise"] for row in by_kind.values())
    strict = {"public": public, "private": by_kind[best]["private"], "without noise": largest}
    return {
        "private_gain_kept": round(_kept(mean), 4),
        "private_best": best,
        "private_gain_kept_by_seed": [round(_kept(row), 4) for row in rows],
        "private_gain_kept_of_largest_gain": round(_kept(strict), 4),
        "private_gain_kept_local": round(kept["local"], 4),
        "private_gain_kept_by_epsilon": {
            "1": round(kept["epsilon 1"], 4), "3": round(kept["epsilon 3"], 4),
            "8": round(_kept(by_kind[best]), 4),
        },
        "private_accuracy": {**by_kind, **{name: found["private"] for name, found in others.items()}},
        "private_accuracy_mean": {name: round(value, 4) for name, value in mean.items()},
    }  # fmt: skip


def _kept(row: Found) -> float:
    return (row["private"] - row["public"]) / (row["without noise"] - row["public"])


class _Seed:
    """The runs of one seed, on the same companies."""

    def __init__(self, seed: int, on_progress: Callable[[str], None]) -> None:
        self._seed, self._on_progress = seed, on_progress
        self._inputs: Inputs = read_inputs(self._settings())

    def run(self, *changes: str, reference: bool = False) -> Found:
        """Accuracy of the "public" model, "private" after the run; with `reference` also "without noise"."""
        with tempfile.TemporaryDirectory(prefix="fedblocks-private-") as folder:
            prepared = prepare(self._settings(*changes), Path(folder) / "run", inputs=self._inputs)
            result = simulate(prepared, engine="processes")
            found = {"public": result["accuracy_public_model"], "private": result["accuracy"]}
            if reference:
                without = simulate(prepare_reference(prepared), engine="processes")
                found["without noise"] = without["accuracy"]
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        self._on_progress(f"seed {self._seed} {' '.join(changes)}: {shown}")
        return found

    def _settings(self, *changes: str) -> Any:
        return load_settings(PRESET, [f"seed={self._seed}", *_UTILITY_ALONE, *changes])
