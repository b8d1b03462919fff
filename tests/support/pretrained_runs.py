"""Settings of small runs of the pretrained families, with data that a few rounds can learn from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from fedblocks.blocks.pretrained.small import small_model
from fedblocks.settings import SimulationSettings, validated

LABELS = ["a", "b", "c"]
FAMILIES = {
    "encoder": "pretrained-text-classifier",
    "vision": "pretrained-image-classifier",
    "decoder": "pretrained-decoder",
}


def pretrained_run(
    kind: str, folder: Path, *, trains: str = "lora", objective: str = "task", **parts: dict[str, Any]
) -> SimulationSettings:
    """Three companies, two blocks of a layer, two rounds; `parts`: changes, by section."""
    model: dict[str, Any] = {
        "family": FAMILIES[kind], "pretrained": str(small_model(kind, 2, 2)), "trains": trains,  # type: ignore[arg-type]
        "objective": objective, "lora_rank": 2,
    }  # fmt: skip
    if kind == "decoder":
        model["sequence_length"] = 5
    else:
        model["classes"] = 3
    data: dict[str, Any] = {}
    for seed, (name, count) in enumerate((("public", 60), ("private", 240))):
        if kind == "encoder":
            model["sequence_length"] = 5
            contract = {"kind": "labelled-text", "labels": LABELS}
            data[name] = {"source": str(_texts(folder / f"{name}.jsonl", count, seed)), "contract": contract}
        elif kind == "decoder":
            data[name] = {"source": str(_text(folder / f"{name}.txt", 8 * count, seed))}
        else:
            data[name] = {"source": str(_images(folder / f"{name}.npz", count, seed))}
    raw: dict[str, Any] = {
        "name": "small",
        "model": model,
        "data": {**data, "test_examples": 20},
        "pretraining": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3},
        "companies": {"count": 3, "holdout": 0.2},
        "training": {
            "interface": True, "rounds": 2, "evaluate_every": 2, "sampling_rate": 0.5, "expected_batch_size": 16,
            "noise_draws": 1, "server_learning_rate": 0.003,
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-3},
        "secure_aggregation": {"minimum_cohort": 3},
    }  # fmt: skip
    for section, changes in parts.items():
        raw[section] = raw.get(section, {}) | changes
    return validated(SimulationSettings, raw)


def _texts(path: Path, count: int, seed: int) -> Path:
    """Short texts of words that their class likes best."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = [f"w{2 + i % 3 * 7 + draw.randrange(7)}" for _ in range(draw.randrange(2, 6))]
        rows.append(json.dumps({"text": " ".join(words), "label": LABELS[i % 3]}))
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def _text(path: Path, words: int, seed: int) -> Path:
    draw = random.Random(seed)
    path.write_text(" ".join(f"w{draw.randrange(2, 24)}" for _ in range(words)), "utf-8")
    return path


def _images(path: Path, count: int, seed: int) -> Path:
    """Brighter ones are of higher classes."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, count)
    np.savez(path, images=draw.random((count, 6, 6)) * 0.5 + labels[:, None, None] / 6, labels=labels)
    return path
