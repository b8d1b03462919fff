"""Autoregressive language model as DiffusionBlocks (arXiv 2506.14202, section 4.4 and appendix).

Llama style: RMSNorm, RoPE, SwiGLU. Noise is added to token embeddings; the noisy token at t sees the clean
tokens before t and no other noisy one, and the loss is the cross-entropy of the noisy positions.

The noisy token starts from what the block has read of the token before it, as an ordinary language model
does, so that with frozen features of the blocks before it carries their work on. The chain starts from the
mean of the prior and draws nothing: its prediction of token t is a function of the tokens before t, and its
cross-entropy is an exact negative log-likelihood.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..categorical_denoiser import EmbeddedDenoiser
from ..denoiser import Features, Metric
from ..noise import Partition
from ..preconditioning import Preconditioning
from ..sampler import run_chain
from ..settings import TextSettings
from ..taps import PrefixTap, Tap, TokenTap
from ..text_prefixes import Stage, TextPrefixes
from ..transformer import Block, KeysValues, Layer, NoiseEmbedding, Shape
from . import Family


class ARLanguageModelSettings(TextSettings):
    """Autoregressive language model in the style of Llama."""

    family: Literal["ar-lm"] = "ar-lm"


class TextBlock(Block):
    """`prelude`: first layers, of the clean stream alone; the noisy tokens join after them."""

    def __init__(self, interface: nn.ModuleDict, prelude: int, layers: int, shape: Shape) -> None:
        super().__init__(interface, layers, shape)
        self.prelude = nn.ModuleList(Layer(shape, modulated=False) for _ in range(prelude))


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
        prelude: int = 0,
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

        each = layers // partition.blocks - prelude
        self.blocks = nn.ModuleList(
            TextBlock(interface(), prelude, each, shape) for _ in range(partition.blocks)
        )

    def text_block(self, block: int) -> TextBlock:
        found = self.blocks[block]
        assert isinstance(found, TextBlock)
        return found

    def token(self, block: int, tokens: Tensor) -> Tensor:
        """A block's own embedding, (N, T) -> (N, T, D)."""
        rows = self.clean(tokens) * math.sqrt(self.table.shape[1])
        return self.own(block, "token", rows)

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        x = self.token(block, inputs)
        for layer in self.text_block(block).prelude:
            assert isinstance(layer, Layer)
            x = layer.clean(x)
        return x

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        before = F.pad(context, (0, 0, 1, -1))  # (n, T, D): at t what was read of the token at t-1
        evidence = self.evidence(z, level)  # (n m, T, vocabulary)
        noisy = self.noisy(block, evidence, before.repeat_interleave(len(z) // len(context), 0))
        _, out = self.part(block)(context, noisy, self.condition(block, level))
        return self.readout(block, out, evidence)

    def noisy(self, block: int, evidence: Tensor, before: Tensor) -> Tensor:
        """The noisy tokens as they enter the layers: (N, T, vocabulary) and (N, T, D) -> (N, T, D)."""
        return before + self.own(block, "noisy", self.posterior_mean(evidence))

    def readout(self, block: int, out: Tensor, evidence: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) from the layers' output (N, T, D)."""
        return self.own(block, "head", self.own(block, "norm", out)) + evidence

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self.loss(prediction, targets) / math.log(2)

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Keys and values of the first two layers. The last token is read by none: noisy tokens see those before."""
        part = self.text_block(block)
        width = self.table.shape[1]
        names = [f"prelude.{i}" for i in range(len(part.prelude))]
        names += [f"layers.{i}" for i in range(len(part.layers))]
        found: list[Tap] = []
        for depth, name in enumerate(names[:2]):
            weight, rows = f"{name}.qkv.weight", slice(width, 3 * width)
            nuisance = 0 if name.startswith("prelude") else 1
            if depth == 0 and (block == 0 or self.features == "raw"):
                table = self.token(block, torch.arange(len(self.table), device=self.device)).detach()
                found.append(
                    TokenTap(
                        field="tokens", weight=weight, rows=rows, table=table,
                        offset=table.new_zeros(1, width), norm="rms", nuisance=nuisance,
                    )
                )  # fmt: skip
                continue

            stages = self._stages(block, depth)

            def prefixes(stages: list[Stage] = stages) -> TextPrefixes:
                return TextPrefixes(stages)

            def enter(tokens: Tensor, stages: list[Stage] = stages) -> Tensor:
                return TextPrefixes(stages).read(tokens)

            found.append(
                PrefixTap(
                    field="tokens", weight=weight, rows=rows, enter=enter, prefixes=prefixes, nuisance=nuisance
                )
            )  # fmt: skip
        return tuple(found)

    def _stages(self, block: int, depth: int) -> list[Stage]:
        """The clean stream of a block after its first `depth` layers, with the blocks that it reads."""
        first = 0 if self.features == "prefix" else block
        found = []
        for b in range(first, block + 1):
            part = self.text_block(b)
            layers = [layer for layer in (*part.prelude, *part.layers) if isinstance(layer, Layer)]
            found.append(Stage(partial(self.token, b), layers if b < block else layers[:depth]))
        return found


class GrowingText:
    """The chain over a text that grows at its end: keys, values and the last context of each block are kept.

    text = GrowingText(model, batch=1)
    text.read(tokens)                  # (N, T)
    logits = text.predict(generator)   # (N, vocabulary) of the token that follows
    """

    def __init__(self, model: ARLanguageModel, batch: int) -> None:
        self.model, self.batch = model, batch
        self._kept: dict[nn.Module, KeysValues] = {}
        width = model.table.shape[1]
        self._last = [torch.zeros(batch, 1, width, device=model.device) for _ in model.blocks]

    @torch.no_grad()
    def read(self, tokens: Tensor) -> None:
        """Take in tokens (N, T) that follow those read before."""
        made: Tensor | None = None
        for b in range(len(self.model.blocks)):
            part = self.model.text_block(b)
            x = self._clean(part.prelude, self.model.token(b, tokens))
            if made is not None and self.model.features == "prefix":
                x = x + made
            self._last[b] = x[:, -1:]
            made = self._clean(part.layers, x)
            made = F.layer_norm(made, made.shape[-1:])

    def _clean(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            assert isinstance(layer, Layer)
            x, self._kept[layer] = layer.clean_step(x, self._kept.get(layer))
        return x

    @torch.no_grad()
    def predict(self, generator: torch.Generator) -> Tensor:
        shape = torch.Size((self.batch, 1, self.model.table.shape[1]))
        return run_chain(self.model, shape, self._predict, generator)[0][-1][:, 0]

    def _predict(self, block: int, z: Tensor, level: Tensor) -> Tensor:
        """As `ARLanguageModel.predict`, of the one token that follows."""
        evidence = self.model.evidence(z, level)  # (N, 1, vocabulary)
        out = self.model.noisy(block, evidence, self._last[block])
        condition = self.model.condition(block, level)
        for layer in self.model.part(block).layers:
            assert isinstance(layer, Layer)
            out = layer.noisy_step(out, condition, self._kept.get(layer))
        return self.model.readout(block, out, evidence)


def generate(
    model: ARLanguageModel,
    prompt: Tensor,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Tensor:
    """prompt (N, T), T may be 0, and `length` tokens that the model goes on with: (N, T + length)."""
    text = GrowingText(model, len(prompt))
    if prompt.shape[1]:
        text.read(prompt)
    found = prompt
    for _ in range(length):
        likely = (text.predict(generator) / temperature).softmax(dim=-1)  # (N, vocabulary)
        token = torch.multinomial(likely, 1, generator=generator)  # (N, 1)
        text.read(token)
        found = torch.cat([found, token], dim=1)
    return found


FAMILY = Family(
    title="autoregressive language model",
    settings=ARLanguageModelSettings,
    network=ARLanguageModel,
    small={"sequence_length": 5, "hidden_size": 12},
)
