"""A small vision transformer of transformers, trained on scikit-learn's scanned digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .fitting import Progress, fit

STEPS, BATCH = 500, 64
_SIZE, _PATCH, _WIDTH, _LAYERS, _HEADS = 8, 2, 64, 6, 4
# Wider than usual: there are too few steps to grow from 0.02.
_INITIAL = 0.08
# What a simulation with seed 0 holds out of these digits, to judge by, is not trained on.
_HELD_OUT = 0.2


def make(to: Path, on_step: Progress) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json."""
    import transformers

    from ...client.data.images.load import BUILT_IN

    pixels, labels = BUILT_IN["digits"]()
    images = torch.as_tensor(np.asarray(pixels), dtype=torch.float32)
    images = images.reshape(len(images), 1, _SIZE, _SIZE)
    images = images / images.max() * 2 - 1
    order = np.random.default_rng([0, 1]).permutation(len(images))
    kept = torch.from_numpy(order[: len(order) - int(len(order) * _HELD_OUT)])
    images, targets = images[kept], torch.as_tensor(np.asarray(labels), dtype=torch.int64)[kept]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.ViTForImageClassification(
            transformers.ViTConfig(  # type: ignore[call-arg]
                image_size=_SIZE, patch_size=_PATCH, num_channels=1, hidden_size=_WIDTH, intermediate_size=4 * _WIDTH,
                num_hidden_layers=_LAYERS, num_attention_heads=_HEADS, num_labels=10, initializer_range=_INITIAL,
            )
        )  # fmt: skip

        def loss(generator: torch.Generator) -> torch.Tensor:
            rows = torch.randint(len(images), (BATCH,), generator=generator)
            found: torch.Tensor = model(pixel_values=images[rows], labels=targets[rows]).loss
            return found

        fit(model, loss, steps=STEPS, learning_rate=2e-3, on_step=on_step)
    model.save_pretrained(to)
    told = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": _SIZE, "width": _SIZE},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5],
        "image_std": [0.5],
    }  # fmt: skip
    (to / "preprocessor_config.json").write_text(json.dumps(told, indent=1), "utf-8")
