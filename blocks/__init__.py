"""The block: its noise interval, its network, its loss and its state.

`noise` cuts the noise range into one interval per block and `information` says where, `denoiser` is what
every model family in `families` implements on the layers of `transformer`, `objective` is the loss of one
block alone, `training` minimises it, `sampler` chains the blocks at inference, `diagnostics` asks what each
of them does there, `state` splits a model into block states and merges them back, `model_file` is one to take along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import build_model as build_model
    from .build import metric_of as metric_of
    from .denoiser import Denoiser as Denoiser
    from .denoiser import Draw as Draw
    from .denoiser import Metric as Metric
    from .diagnostics import BlockDiagnosis as BlockDiagnosis
    from .diagnostics import diagnose as diagnose
    from .model_file import ModelCard as ModelCard
    from .model_file import load_model as load_model
    from .noise import LogNormalNoise as LogNormalNoise
    from .noise import MaskingRate as MaskingRate
    from .noise import Partition as Partition
    from .noise import Seeded as Seeded
    from .noise import Source as Source
    from .objective import BlockObjective as BlockObjective
    from .preconditioning import Preconditioning as Preconditioning
    from .sampler import sample_chain as sample_chain
    from .state import ModelState as ModelState
    from .state import block_parameters as block_parameters
    from .state import digest as digest
    from .state import load_state as load_state
    from .state import merge as merge
    from .state import save_state as save_state
    from .state import split as split
    from .training import Schedule as Schedule
    from .training import train as train

# Settings stand on `blocks.settings`, which knows no torch: the rest is loaded when it is asked for.
_HOME = {
    "BlockDiagnosis": "diagnostics",
    "BlockObjective": "objective",
    "Denoiser": "denoiser",
    "Draw": "denoiser",
    "LogNormalNoise": "noise",
    "MaskingRate": "noise",
    "Metric": "denoiser",
    "ModelCard": "model_file",
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
    "load_model": "model_file",
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
