"""The block: its noise interval, its network, its loss and its state.

`noise` cuts the noise range into one interval per block and `information` says where, `denoiser` is what
every model family in `families` implements on the layers of `transformer`, `objective` is the loss of one
block alone, `training` minimises it, `sampler` chains the blocks at inference, `diagnostics` asks what each
of them does there, `state` splits a model into block states and merges them back.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import build_model, metric_of
    from .denoiser import Denoiser, Draw, Metric
    from .diagnostics import BlockDiagnosis, diagnose
    from .noise import LogNormalNoise, MaskingRate, Partition, Seeded, Source
    from .objective import BlockObjective
    from .preconditioning import Preconditioning
    from .sampler import sample_chain
    from .state import ModelState, block_parameters, digest, load_state, merge, save_state, split
    from .training import Schedule, train

# Settings stand on `blocks.settings`, which knows no torch: the rest is loaded when it is asked for.
_HOME = {
    "BlockDiagnosis": "diagnostics",
    "BlockObjective": "objective",
    "Denoiser": "denoiser",
    "Draw": "denoiser",
    "LogNormalNoise": "noise",
    "MaskingRate": "noise",
    "Metric": "denoiser",
    "ModelState": "state",
    "Partition": "noise",
    "Preconditioning": "preconditioning",
    "Schedule": "training",
    "Seeded": "noise",
    "Source": "noise",
    "block_parameters": "state",
    "build_model": "build",
    "diagnose": "diagnostics",
    "digest": "state",
    "load_state": "state",
    "merge": "state",
    "metric_of": "build",
    "sample_chain": "sampler",
    "save_state": "state",
    "split": "state",
    "train": "training",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


__all__ = [
    "BlockDiagnosis",
    "BlockObjective",
    "Denoiser",
    "Draw",
    "LogNormalNoise",
    "MaskingRate",
    "Metric",
    "ModelState",
    "Partition",
    "Preconditioning",
    "Schedule",
    "Seeded",
    "Source",
    "block_parameters",
    "build_model",
    "diagnose",
    "digest",
    "load_state",
    "merge",
    "metric_of",
    "sample_chain",
    "save_state",
    "split",
    "train",
]
