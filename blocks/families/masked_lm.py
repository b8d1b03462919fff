"""Masked-diffusion language model as DiffusionBlocks (arXiv 2506.14202, section 4.3; MD4, Shi et al. 2024).

The layers are Llama's (RMSNorm, RoPE, SwiGLU) with full attention. There is no clean stream: the text is the
target, and all that a block may read of it are the tokens that z shows.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..denoiser import Features, Metric
from ..masked import MaskedDenoiser
from ..noise import Partition
from ..settings import TextSettings
from ..taps import Modulation, Tap, TokenTap
from ..transformer import Block, Layer, NoiseEmbedding, Shape
from . import Family


class MaskedLanguageModelSettings(TextSettings):
    """Masked-diffusion language model."""

    family: Literal["masked-lm"] = "masked-lm"


class MaskedLanguageModel(MaskedDenoiser):
    """Tokens (N, T) in [0, vocabulary), as inputs and as targets; the inputs are never read.

    bound = model.bits(tokens, generator).mean(dim=1)      # (B,) bits a character after each block
    text = generate(model, tokens, tokens, generator)
    """

    metric: ClassVar[Metric] = Metric("bits_per_character", False, "bits")
    steps_per_block = 16

    def __init__(
        self,
        *,
        partition: Partition,
        features: Features = "raw",
        vocabulary: int = 97,
        hidden_size: int = 64,
        layers: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        if features != "raw":
            raise InputError(
                "features", features, "a masked-lm has no clean stream to pass on; expected 'raw'"
            )
        super().__init__(partition, vocabulary)
        self.hidden_size = hidden_size
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio, style="llama")

        def interface() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "token": nn.Embedding(vocabulary + 1, hidden_size),
                    "noise": NoiseEmbedding(hidden_size),
                    "norm": nn.LayerNorm(hidden_size),
                    "head": nn.Linear(hidden_size, vocabulary),
                }
            )

        each = layers // partition.blocks
        self.blocks = nn.ModuleList(Block(interface(), each, shape) for _ in range(partition.blocks))

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        """Nothing, (N, 0, D): the inputs are the answer."""
        return inputs.new_empty(len(inputs), 0, self.hidden_size).float()

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        part = self.part(block)
        own = part.interface
        _, out = part(context, own["token"](z), own["noise"](level))
        return self.known(own["head"](own["norm"](out)), z)

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Keys and values of the first layer, of the shown tokens and of [MASK], which is the table's last row."""
        part = self.part(block)
        first = part.layers[0]
        assert isinstance(first, Layer)
        rows = torch.arange(self.vocabulary + 1, device=self.device)
        table = self.own(block, "token", rows).detach()

        def apply(tokens: Tensor, condition: Tensor) -> Tensor:
            shift, scale = first.modulation(condition).detach().chunk(6)[:2]
            modulated: Tensor = tokens * (1 + scale) + shift
            return modulated

        def curve(levels: Tensor) -> Tensor:
            return self.own(block, "noise", levels)

        weights = tuple(f"layers.{i}.modulation.weight" for i in range(len(part.layers)))
        return (
            TokenTap(
                field="tokens", weight="layers.0.qkv.weight", rows=slice(self.hidden_size, 3 * self.hidden_size),
                table=table, offset=table.new_zeros(1, self.hidden_size), norm="rms", nuisance=0,
                modulation=Modulation(weights=weights, curve=curve, apply=apply),
            ),
        )  # fmt: skip


FAMILY = Family(
    title="masked language model",
    settings=MaskedLanguageModelSettings,
    network=MaskedLanguageModel,
    small={"sequence_length": 5, "hidden_size": 12},
)
