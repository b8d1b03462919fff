"""Adapting pretrained models, each figure beside its alternative in the same run; a part a file.

exactness     what a converted model computes, of every architecture, against transformers
minilm        MiniLM in three blocks against end-to-end fine-tuning, without privacy: accuracy and memory
private       what privacy leaves of the gain of adapting, in the preset `minilm-text`
lora          time and memory of a private step on low-rank adapters, against the plain step and Opacus
prefix_cache  what a round costs where companies keep the features of the blocks before the trained one
decoder       next-token loss of the small Llama after adaptation in blocks, against full fine-tuning
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ....errors import InputError

PARTS = ("exactness", "minilm", "private", "lora", "prefix_cache", "decoder")


def measure(
    seeds: int, only: list[str], on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """The figures of all parts side by side. Raises: InputError for a part that is none."""
    for part in only:
        if part not in PARTS:
            raise InputError("--only", part, f"expected one of {', '.join(PARTS)}")
    found: dict[str, Any] = {"seeds": seeds}
    for part in only or PARTS:
        module = import_module(f".{part}", __name__)
        found |= module.measure(seeds, lambda line, part=part: on_progress(f"{part}: {line}"))
    return found
