"""What every model family implements: a network cut into blocks that denoise a target.

A family holds its blocks in `self.blocks`; everything else is shared state (embeddings, final norm,
head), which comes from public pretraining and is frozen while companies train. `encode` and `readout`
use shared parts only, so a block's loss has no gradient path into any other block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .noise import Partition
from .preconditioning import Preconditioning


class Denoiser(nn.Module, ABC):
    """A residual network whose block b denoises the target within its own noise interval.

    model = ViTClassifier(partition=partition)
    z = model.target(labels) + sigma[:, None] * eps
    logits = model.predict(0, z, sigma, model.encode(images))
    """

    blocks: nn.ModuleList

    def __init__(self, partition: Partition, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.partition = partition
        self.preconditioning = preconditioning

    @abstractmethod
    def encode(self, inputs: Tensor) -> Tensor:
        """The clean input as every block reads it: (N, ...) -> (N, T, D)."""

    @abstractmethod
    def target(self, labels: Tensor) -> Tensor:
        """What the blocks denoise: (N,) labels -> (N, D)."""

    @abstractmethod
    def condition(self, sigma: Tensor) -> Tensor:
        """Embedding of the noise level that modulates a block: (N,) -> (N, D)."""

    @abstractmethod
    def run_block(self, block: int, z: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """The raw network F of one block: z (N, D), sigma (N,), context from `encode` -> (N, D)."""

    @abstractmethod
    def readout(self, denoised: Tensor) -> Tensor:
        """The prediction made from D(z; sigma): (N, D) -> for a classifier logits (N, classes)."""

    @abstractmethod
    def estimate(self, prediction: Tensor) -> Tensor:
        """The clean target that a prediction stands for, in target space: -> (N, D)."""

    @abstractmethod
    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, unweighted: -> (N,)."""

    def predict(self, block: int, z: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """readout(c_skip z + c_out F_b(c_in z; c_noise, context))."""
        p = self.preconditioning
        raw = self.run_block(block, p.c_in(sigma)[:, None] * z, sigma, context)
        return self.readout(p.c_skip(sigma)[:, None] * z + p.c_out(sigma)[:, None] * raw)

    def freeze_all_but(self, block: int) -> nn.Module:
        """Leave only `block` trainable and return it."""
        self.requires_grad_(False)
        active = self.blocks[block]
        active.requires_grad_(True)
        return active

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
