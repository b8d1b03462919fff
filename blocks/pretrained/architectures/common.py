"""A pretrained model as its layers and its trunk: the embeddings before them, the final norm and the head behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InputError

HEAD = "lm_head"


class Trunk(nn.Module, ABC):
    """All of a model but its layers; a subclass is an architecture.

        x = trunk.embed(inputs)                                   # (N, T, D)
        x = trunk.run(layers, x, allowed, positions, first=0)
        logits = trunk.logits(trunk.finish(x))                    # decoders: (N, T, vocabulary)

    The submodules and their tensors have the names that they have in the bare model of transformers.
    """

    # Of the bare model in `transformers.models.<package>`: its configuration, the classes that hold one, where its
    # layers lie in it, and which of its submodules belong here.
    package: ClassVar[str]
    config_class: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    layers_at: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]
    # The class whose `classifier`, a linear map, reads the finished first token.
    image_classifier: ClassVar[str | None] = None
    # Gemma's norms multiply by 1 + w.
    norm_offset: ClassVar[bool] = False

    def __init__(self, base: nn.Module, config: Any, head: nn.Linear | None) -> None:
        super().__init__()
        self.config = config
        for name in self.parts:
            self.add_module(name, getattr(base, name))
        if head is not None:
            self.add_module(HEAD, head)

    @classmethod
    def refuse(cls, config: Any) -> None:
        """Raises InputError for a configuration of this architecture that asks for what is not computed here."""

    @classmethod
    def sizes(cls, config: Any) -> dict[str, int | None]:
        """The card's fields of sizes."""
        return {
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
            "longest": config.max_position_embeddings,
        }

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens (N, T), or images (N, C, H, W) in [0, 1], to (N, T', D) in the model's precision."""

    @abstractmethod
    def run(
        self, layers: Iterable[nn.Module], x: Tensor, allowed: Tensor | None, positions: Tensor, first: int
    ) -> Tensor:
        """x (N, T, D) through consecutive layers, of which `layers[0]` is the model's layer `first`.

        `allowed`, bool (N or 1, 1, T, T), is True where a token (row) attends to another (column); None: each attends
        to all, in decoders too, so a causal model is given its triangle. Every row must have a True. `positions` (T,)
        are the tokens' positions in the text; two tokens may have the same one. The window of a layer that sees only
        its neighbourhood narrows `allowed` by the distance of positions.
        """

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """The norm behind the last layer, (N, T, D); x itself where the model has none."""

    def logits(self, x: Tensor) -> Tensor:
        """Of a decoder: finished x (N, T, D) to the logits of the next token, (N, T, vocabulary)."""
        if self.kind != "decoder":
            raise TypeError(f"{type(self).__name__} is no decoder")
        head = self._modules.get(HEAD)
        return head(x) if head is not None else F.linear(x, self.token_table())

    def token_table(self) -> Tensor:
        """The token embeddings, (vocabulary, D)."""
        raise TypeError(f"{type(self).__name__} has no tokens")

    def check_length(self, inputs: Tensor) -> None:
        """Raises InputError for texts longer than the model has positions for."""
        longest = self.config.max_position_embeddings
        if inputs.shape[1] > longest:
            raise InputError("sequence_length", inputs.shape[1], f"the model has {longest} positions")


class DecoderTrunk(Trunk):
    """What predicts the next token; its layers can keep keys and values of the tokens before (`cache`)."""

    kind = "decoder"

    @abstractmethod
    def run(
        self,
        layers: Iterable[nn.Module],
        x: Tensor,
        allowed: Tensor | None,
        positions: Tensor,
        first: int,
        cache: Any = None,
    ) -> Tensor:
        """As of any trunk. `cache`: transformers' own, for all layers; x (N, t, D) are then the tokens after those
        that it has seen, at `positions` (t,) from there on, and `allowed` (1, 1, t, T) has a column for each."""


class VisionTrunk(Trunk):
    """What the architectures that see images share; their tokens all attend to each other."""

    kind = "vision"
    parts = ("embeddings", "layernorm")

    embeddings: nn.Module
    layernorm: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, base: nn.Module, config: Any, head: nn.Linear | None) -> None:
        super().__init__(base, config, head)
        self.set_normalisation((), ())

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """What images are normalised by, a channel each; nothing: they are taken as they are."""
        for name, values, none in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = values or (none,) * self.config.num_channels
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @classmethod
    def sizes(cls, config: Any) -> dict[str, int | None]:
        return {
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "channels": config.num_channels,
            "image_size": _one(config.image_size, "image_size"),
            "patch_size": _one(config.patch_size, "patch_size"),
        }

    def embed(self, inputs: Tensor) -> Tensor:
        size = self.config.image_size
        if inputs.shape[1:] != (self.config.num_channels, size, size):
            raise InputError(
                "image_size",
                tuple(inputs.shape[1:]),
                f"the model takes {self.config.num_channels} x {size} x {size}",
            )
        dtype = next(self.embeddings.parameters()).dtype
        return cast(Tensor, self.embeddings(((inputs - self.mean) / self.std).to(dtype)))

    def run(
        self, layers: Iterable[nn.Module], x: Tensor, allowed: Tensor | None, positions: Tensor, first: int
    ) -> Tensor:
        for layer in layers:
            x = layer(x, allowed)
        return x

    def finish(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layernorm(x))


def _one(size: Any, field: str) -> int:
    if not isinstance(size, int):
        raise InputError(f"config.json: {field}", size, "must be one number: images and patches are squares")
    return size
