"""The presets as tests load them: a built-in pretrained model, minutes to make, is one of random weights instead."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources

from fedblocks.blocks.pretrained.small import small_model
from fedblocks.experiments import presets
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.pretrained_models import PREFIX
from fedblocks.settings import SimulationSettings

_KINDS = {
    "pretrained-text-classifier": "encoder",
    "pretrained-decoder": "decoder",
    "pretrained-image-classifier": "vision",
}
_LAYERS = 6


def quick_settings(name: str, overrides: Sequence[str] = ()) -> SimulationSettings:
    """As `load_settings`, without training anything first."""
    return load_settings(name, [*without_training(name), *overrides])


def without_training(name: str) -> list[str]:
    """Changes of the preset by which its model is of random weights."""
    raw = tomllib.loads(resources.files(presets).joinpath(f"{name}.toml").read_text("utf-8"))
    model = raw.get("model", {})
    if not str(model.get("pretrained", "")).startswith(PREFIX):
        return []
    small = small_model(_KINDS[model["family"]], _LAYERS, model["blocks"])  # type: ignore[arg-type]
    short = ["model.sequence_length=8"] if "sequence_length" in model else []
    return [f"model.pretrained={small}", *short]
