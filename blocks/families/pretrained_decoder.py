"""A pretrained decoder (GPT-2, Llama, Qwen, Mistral), adapted to the text of several companies."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..denoiser import Metric
from ..pretrained.architectures.common import DecoderTrunk
from ..pretrained.block import wide
from ..pretrained.denoiser import PretrainedDenoiser
from ..pretrained.settings import PretrainedSettings
from ..pretrained.small import small_model
from ..pretrained.trunk import Trunk
from ..sampler import sample_chain
from ..settings import TokenWindows, require
from . import Family

# That attend to each other: their mask alone takes 256 MiB in single precision.
MOST_TOKENS = 8192


class PretrainedDecoderSettings(TokenWindows, PretrainedSettings):
    """`sequence_length`: tokens of an example."""

    connector: ClassVar[str] = "text"
    kind_of_model = "decoder"

    family: Literal["pretrained-decoder"] = "pretrained-decoder"
    tokenizer: Literal["pretrained"] = "pretrained"
    vocabulary: int = Field(ge=2, le=1_000_000)
    longest: int = Field(ge=2)
    sequence_length: int = Field(64, ge=2, le=65536)

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        return (*super().sizes(), "vocabulary", "longest")

    @model_validator(mode="after")
    def _short_enough(self) -> Self:
        rule = f"the model takes at most {self.longest} tokens"
        require(self.sequence_length <= self.longest, "sequence_length", self.sequence_length, rule)
        rule = (
            "the last block reads with the original head, which stays as it is; expected nothing or adapter"
        )
        require(self.personal != "head", "personal", self.personal, rule)
        return self

    def check_draws(self, field: str, draws: int) -> None:
        if self.denoises:
            length = self.sequence_length
            tokens = length + draws * (length - 1)  # each draw has a noisy copy of every token but the last
            rule = f"with sequence_length={length} an example is {tokens:,} tokens at once, at most {MOST_TOKENS:,}"
            require(tokens <= MOST_TOKENS, field, draws, rule)


class PretrainedDecoder(PretrainedDenoiser):
    """Tokens (N, T), both as inputs and as targets; the first has no prediction and no loss.

    A block's own predictions are the original head's, after a map of its own that is zero at first (`bridge`): the
    head was made for what the last block hands on, so that block has none.
    """

    metric = Metric("bits_per_token", False, "bits")

    @staticmethod
    def target_table(settings: PretrainedSettings, trunk: Trunk) -> Tensor:
        return trunk.token_table().detach().float()

    @staticmethod
    def new_interface(settings: PretrainedSettings, block: int) -> nn.ModuleDict:
        if block + 1 == settings.blocks:
            return nn.ModuleDict()
        bridge = nn.Linear(settings.hidden_size, settings.hidden_size)
        nn.init.zeros_(bridge.weight)
        nn.init.zeros_(bridge.bias)
        return nn.ModuleDict({"bridge": bridge})

    def present(self, inputs: Tensor, tokens: int) -> Tensor:
        return torch.ones_like(inputs, dtype=torch.bool)

    def attends(self, present: Tensor) -> Tensor:
        t = present.shape[1]
        return torch.ones(1, 1, t, t, dtype=torch.bool, device=present.device).tril()

    def copied(self, tokens: int) -> Tensor:
        """The noisy token of target t + 1 stands beside the token t, from which the original predicts it."""
        return torch.arange(tokens - 1)

    def read(self, block: int, out: Tensor, present: Tensor) -> Tensor:
        return self._logits(block, out[:, :-1])

    def read_noisy(self, block: int, out: Tensor, noisy: Tensor, present: Tensor) -> Tensor:
        return self._logits(block, noisy.flatten(0, 1))

    def _logits(self, block: int, out: Tensor) -> Tensor:
        if block + 1 < len(self.blocks):
            out = out + self.own(block, "bridge", wide(out)).to(out.dtype)
        logits = wide(self.trunk.logits(self.finished(out)))
        return F.pad(logits, (0, 0, 1, 0))  # all alike of the first token, which nothing predicts

    def new_cache(self) -> Any:
        """Where layers keep keys and values of a text that grows, for `next_logits`; none for a chain of denoising
        blocks, which begins anew with every token."""
        from transformers import DynamicCache

        return None if self.settings.objective == "denoise" else DynamicCache()

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, generator: torch.Generator, cache: Any = None) -> Tensor:
        """Of the token after tokens (N, T), T at least 1: (N, V). `cache`: has seen the first of them, or none."""
        if self.settings.objective == "denoise":
            one_more = torch.cat([tokens, tokens[:, :1]], dim=1)  # whatever it is, it is not read
            return sample_chain(self, one_more, one_more, generator)[-1][:, -1]
        assert isinstance(self.trunk, DecoderTrunk)
        known = 0 if cache is None else cache.get_seq_length()
        x = self.trunk.embed(tokens)[:, known:]
        allowed = self.attends(self.present(tokens, tokens.shape[1]))[:, :, known:]
        positions = torch.arange(known, tokens.shape[1], device=tokens.device)
        for b in range(len(self.blocks)):
            part = self.block(b)
            x = self.trunk.run(part.layers, x.to(part.dtype), allowed, positions, b * self.each, cache)
        return self._logits(len(self.blocks) - 1, x[:, -1:])[:, -1]

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Nats a token, but for the first: prediction (N, T, V), targets (N, T) -> (N,)."""
        each = F.cross_entropy(prediction[:, 1:].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        return each.view(len(targets), -1).mean(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self.loss(prediction, targets) / math.log(2)


def go_on(
    model: PretrainedDecoder,
    prompt: Tensor,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Tensor:
    """prompt (N, T), T at least 1, and `length` tokens that the model goes on with: (N, T + length)."""
    found, cache = prompt, model.new_cache()
    for _ in range(length):
        likely = (model.next_logits(found, generator, cache).cpu() / temperature).softmax(dim=-1)
        token = torch.multinomial(likely, 1, generator=generator)  # (N, 1)
        found = torch.cat([found, token.to(found.device)], dim=1)
    return found


def _small(layers: int, blocks: int) -> dict[str, object]:
    return {"pretrained": str(small_model("decoder", layers, blocks)), "sequence_length": 5}


FAMILY = Family(
    title="pretrained decoder (language model)",
    settings=PretrainedDecoderSettings,
    network=PretrainedDecoder,
    small=_small,
)
