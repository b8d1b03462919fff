"""The block: its noise interval, its network, its loss and its state.

`noise` cuts the noise range into one interval per block, `denoiser` is what every model family
implements, `vit` is the image classifier, `objective` is the loss of one block alone, `sampler`
chains the blocks at inference, `state` splits a model into block states and merges them back.
"""

from .build import build_model
from .denoiser import Denoiser
from .noise import LogNormalNoise, Partition
from .objective import BlockObjective
from .preconditioning import Preconditioning
from .pretraining import pretrain
from .sampler import sample_chain
from .state import ModelState, block_parameters, digest, load_state, merge, save_state, split
from .vit import ViTClassifier

__all__ = [
    "BlockObjective",
    "Denoiser",
    "LogNormalNoise",
    "ModelState",
    "Partition",
    "Preconditioning",
    "ViTClassifier",
    "block_parameters",
    "build_model",
    "digest",
    "load_state",
    "merge",
    "pretrain",
    "sample_chain",
    "save_state",
    "split",
]
