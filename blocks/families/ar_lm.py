"""Autoregressive language model as DiffusionBlocks (arXiv 2506.14202, section 4.4 and appendix).

Llama style: RMSNorm, RoPE, SwiGLU. Noise is added to token embeddings; the noisy token at t sees the clean
tokens before t and no other noisy one, and the loss is the cross-entropy of the noisy positions. The chain's
prediction of token t depends on the tokens before t and on noise alone, so its cross-entropy, averaged over
noise, is an upper bound on the negative log-likelihood of the mixture over noise (Jensen).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..denoiser import Features, Metric
from ..embedded import EmbeddedDenoiser
from ..noise import Partition
from ..preconditioning import Preconditioning
from ..transformer import Block, NoiseEmbedding, Shape


class ARLanguageModel(EmbeddedDenoiser):
    """Tokens (N, T) in [0, vocabulary), both as inputs and as targets.

    The token table is fixed; each block has a linear map of its own behind it.
    """

    metric: ClassVar[Metric] = Metric("bits_per_character", False, "bits")

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        vocabulary: int = 97,
        hidden_size: int = 64,
        layers: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        table = torch.randn(vocabulary, hidden_size)
        super().__init__(partition, preconditioning or Preconditioning(), features, table)
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio, style="llama", causal=True)

        def interface() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "token": nn.Linear(hidden_size, hidden_size, bias=False),
                    "noisy": nn.Linear(hidden_size, hidden_size, bias=False),
                    "noise": NoiseEmbedding(hidden_size),
                    "norm": nn.LayerNorm(hidden_size),
                    "head": nn.Linear(hidden_size, vocabulary),
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        own = self.blocks[block].interface
        embedded: Tensor = own["token"](self.clean(inputs) * math.sqrt(self.table.shape[1]))
        return embedded

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        evidence = self.evidence(z, level)  # (N, T, vocabulary)
        token = self.blocks[block].interface["noisy"](self.posterior_mean(evidence))  # (N, T, D)
        _, out = self.blocks[block](context, token, self.condition(block, level))
        return self.readout(block, out, evidence)

    def readout(self, block: int, out: Tensor, evidence: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) from the layers' output (N, T, D)."""
        own = self.blocks[block].interface
        logits: Tensor = own["head"](own["norm"](out)) + evidence
        return logits

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self.loss(prediction, targets) / math.log(2)
