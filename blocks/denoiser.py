"""What every model family implements: a network cut into blocks that denoise a target.

A family holds its blocks in `self.blocks`. A block owns all that it trains, its embeddings and readout
included. What the blocks hand to each other, the estimate of the target, is common and never trained: the
label or token table. So a block's loss has no gradient path into any other block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .groups import Group, groups_of
from .noise import LogNormalNoise, NoiseLaw, Partition, Source
from .preconditioning import Preconditioning
from .sampler import sample_chain
from .settings import NoiseSettings
from .taps import Modulation, NoisedTap, Tap
from .transformer import Block, Layer

Features = Literal["raw", "prefix"]

_AT_ONCE = 512


@dataclass(frozen=True)
class Draw:
    """One noise draw an example: level (N,), noise shaped as the clean target."""

    level: Tensor
    noise: Tensor

    def __getitem__(self, rows: Tensor) -> Draw:
        return Draw(self.level[rows], self.noise[rows])

    def to(self, device: torch.device) -> Draw:
        return Draw(self.level.to(device), self.noise.to(device))


@dataclass(frozen=True)
class Metric:
    """How a family's predictions are judged.

    `name` is the field's, as in metrics.jsonl; `title` is how a report writes it, if not as the name's words.
    """

    name: str
    higher_is_better: bool
    unit: Literal["share", "bits", "number"]
    title: str = ""

    @property
    def words(self) -> str:
        """The name within a sentence."""
        return self.title or self.name.replace("_", " ")


class Denoiser(nn.Module, ABC):
    """A residual network whose block b denoises the target within its own noise interval.

    model = build_model(settings.model, settings.noise)
    context = model.context(0, images)
    draw = model.draw(0, labels, source)
    prediction = model.predict(0, model.corrupt(model.clean(labels), draw), draw.level, context)

    `features`: "raw", a block reads the clean input through its own embedding alone; "prefix", it also
    reads what the blocks before it, frozen, have made of that input.
    """

    blocks: nn.ModuleList
    metric: ClassVar[Metric]
    metric_by_example: ClassVar[bool] = True  # the mean of `score`; else `chain_quality` is the family's own
    metric_of_one: ClassVar[bool] = True  # whether `chain_quality` of a single example says anything
    blocks_alike: ClassVar[bool] = (
        True  # a block is built alone in the place of any; else the network takes `only`
    )
    steps_per_block: int = 1  # of the sampler

    def __init__(self, partition: Partition, features: Features = "raw") -> None:
        super().__init__()
        self.partition = partition
        self.features = features

    # What a family defines.

    @classmethod
    @abstractmethod
    def noise_law(cls, noise: NoiseSettings) -> NoiseLaw:
        """The law of noise levels, of which every block owns an interval."""

    @classmethod
    def noise_options(cls, noise: NoiseSettings) -> dict[str, Any]:
        """What the network is built with because of its noise, besides the partition."""
        return {}

    @classmethod
    def information(cls, law: NoiseLaw, classes: int | None) -> tuple[list[float], list[float]] | None:
        """(levels, nats unknown at each), where there is a closed form of what is to be learnt at which level.

        `classes`: how many values a target may take; none: real values.
        """
        return None

    @abstractmethod
    def embed(self, block: int, inputs: Tensor) -> Tensor:
        """The clean input as this block's own embedding gives it: (N, ...) -> (N, Tc, D); Tc may be 0."""

    @abstractmethod
    def clean(self, targets: Tensor) -> Tensor:
        """What the blocks denoise, (N, ...)."""

    @abstractmethod
    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """Prediction of one block: z (n m, ...), level (n m,), context (n, Tc, D) -> (n m, ...)."""

    @abstractmethod
    def estimate(self, prediction: Tensor) -> Tensor:
        """The clean target that a prediction stands for, shaped as `clean`."""

    @abstractmethod
    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example, unweighted: -> (N,)."""

    @abstractmethod
    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """`metric` of each example: -> (N,)."""

    @abstractmethod
    def draw(self, block: int, targets: Tensor, source: Source) -> Draw:
        """A noise draw for each target, its level in the block's training interval."""

    @abstractmethod
    def corrupt(self, clean: Tensor, draw: Draw) -> Tensor:
        """The noisy target z."""

    @abstractmethod
    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        """z of no information, from which sampling starts."""

    @abstractmethod
    def advance(
        self, z: Tensor, prediction: Tensor, level: float, to: float, generator: torch.Generator
    ) -> Tensor:
        """One step of the sampler from one level to a lower one."""

    def block_loss(self, block: int, z: Tensor, level: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """What a block minimises, unweighted: arguments as of `predict`, targets (n m, ...) -> (n m,)."""
        return self.loss(self.predict(block, z, level, context), targets)

    def weight(self, level: Tensor, kind: Literal["unit", "edm"]) -> Tensor:
        """Weight of each example's loss, (N,)."""
        return torch.ones_like(level)

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Weights of a block whose gradient shows what an example consists of, by names within the block."""
        return ()

    @torch.no_grad()
    def chain_quality(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> list[float]:
        """`metric` after each block of the sampling chain, over all examples; the last is the model's own.

        inputs (N, ...), targets (N, ...) on any device.
        """
        total = torch.zeros(self.partition.blocks, dtype=torch.float64)
        for x, y in zip(inputs.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
            x, y = x.to(self.device), y.to(self.device)
            for b, prediction in enumerate(sample_chain(self, x, y, generator)):
                total[b] += self.score(prediction, y).double().sum().cpu()
        return [float(v) for v in total / len(targets)]

    def measure(self, block: int, inputs: Tensor, before: Tensor | None = None) -> None:
        """Keep what a block needs of public data's statistics, before it is trained on them; mostly nothing.

        inputs (N, ...) on the model's device; `before` as in `context`.
        """

    # What all families share.

    def part(self, block: int) -> Block:
        found = self.blocks[block]
        assert isinstance(found, Block)
        return found

    def own(self, block: int, name: str, x: Tensor) -> Tensor:
        """One module of a block's own interface, applied."""
        out: Tensor = self.part(block).interface[name](x)
        return out

    def context(self, block: int, inputs: Tensor, before: Tensor | None = None) -> Tensor:
        """What the block reads of the clean input, (N, ...) -> (N, Tc, D); no gradient to other blocks.

        `before`: the features of the blocks before it, where they have been computed already.
        """
        own = self.embed(block, inputs)
        if self.features == "raw" or block == 0 or own.shape[1] == 0:
            return own
        if before is None:
            with torch.no_grad():
                before = self.features_before(block, inputs)
        return own + before

    def features_before(self, block: int, inputs: Tensor) -> Tensor:
        """What the blocks before this one, in their order, have made of the clean input: (N, Tc, D)."""
        made: Tensor | None = None
        for b in range(block):
            own = self.embed(b, inputs)
            made = self.part(b).features(own if made is None else own + made)
        assert made is not None
        return made

    def contexts(self, inputs: Tensor) -> list[Tensor]:
        """`context` of every block, the features passed on once."""
        found: list[Tensor] = []
        for b in range(len(self.blocks)):
            own = self.embed(b, inputs)
            if b and self.features == "prefix" and own.shape[1]:
                own = own + self.part(b - 1).features(found[-1])
            found.append(own)
        return found

    def groups(self, block: int | None, interface: bool = True) -> dict[str, Group]:
        """The group of each tensor of a block, by its name in the model's state; none: of those of no block.

        `interface`: whether the run trains that as well.
        """
        if block is not None:
            found = groups_of(self.blocks[block], interface)
            return {f"blocks.{block}.{name}": group for name, group in found.items()}
        owned = self.blocks.state_dict(prefix="blocks.")
        return {name: "shared" for name in self.state_dict() if name not in owned}

    def trainable(self, block: int, interface: bool) -> list[str]:
        """Names of what a round trains of a block, in the order in which updates are flattened."""
        groups = groups_of(self.blocks[block], interface)
        return sorted(name for name, _ in self.blocks[block].named_parameters() if groups[name] == "trained")

    def freeze_all_but(self, block: int, interface: bool = True) -> nn.Module:
        """Leave only `block` trainable (what is personal never, its interface if so wanted) and return it."""
        self.requires_grad_(False)
        active = self.blocks[block]
        wanted = set(self.trainable(block, interface))
        for name, parameter in active.named_parameters():
            parameter.requires_grad_(name in wanted)
        return active

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class GaussianDenoiser(Denoiser):
    """z = clean + sigma eps, EDM preconditioning; sampling by Euler steps of the probability-flow ODE."""

    def __init__(self, partition: Partition, preconditioning: Preconditioning, features: Features) -> None:
        super().__init__(partition, features)
        self.preconditioning = preconditioning

    @classmethod
    def noise_law(cls, noise: NoiseSettings) -> NoiseLaw:
        return LogNormalNoise(
            P_mean=noise.P_mean, P_std=noise.P_std, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max
        )

    @classmethod
    def noise_options(cls, noise: NoiseSettings) -> dict[str, Any]:
        return {"preconditioning": Preconditioning(sigma_data=noise.sigma_data)}

    def draw(self, block: int, targets: Tensor, source: Source) -> Draw:
        sigma = self.partition.sample(block, len(targets), source)
        return Draw(sigma, source.normal(len(targets), *self.clean(targets[:1]).shape[1:]))

    def corrupt(self, clean: Tensor, draw: Draw) -> Tensor:
        return clean + over(draw.level, clean) * draw.noise

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        return level * torch.randn(shape, generator=generator, device=generator.device)

    def advance(
        self, z: Tensor, prediction: Tensor, level: float, to: float, generator: torch.Generator
    ) -> Tensor:
        """z += (s' - s)(z - D)/s (Karras et al. 2022, algorithm 1)."""
        return z + (to - level) * (z - self.estimate(prediction)) / level

    def weight(self, level: Tensor, kind: Literal["unit", "edm"]) -> Tensor:
        return torch.ones_like(level) if kind == "unit" else self.preconditioning.weight(level)

    def condition(self, block: int, sigma: Tensor) -> Tensor:
        """Embedding of the noise level that modulates a block: (N,) -> (N, D)."""
        return self.own(block, "noise", self.preconditioning.c_noise(sigma))

    def denoised(self, z: Tensor, sigma: Tensor, raw: Tensor) -> Tensor:
        """D = c_skip z + c_out F."""
        p = self.preconditioning
        return over(p.c_skip(sigma), z) * z + over(p.c_out(sigma), z) * raw

    def scaled(self, z: Tensor, sigma: Tensor) -> Tensor:
        """c_in z."""
        return over(self.preconditioning.c_in(sigma), z) * z

    def noised_tap(
        self,
        block: int,
        field: str,
        *,
        embedding: str,
        position: str,
        cut: Callable[[Tensor], Tensor],
        join: Callable[[Tensor], Tensor],
        clean_tokens: int = 0,
        labels: str | None = None,
    ) -> NoisedTap:
        """Where a block's first layer reads the noised target; the modules are named as in its interface."""
        part = self.part(block)
        first, own = part.layers[0], part.interface
        embed, place = own[embedding], own[position]
        assert isinstance(first, Layer)
        assert isinstance(embed, nn.Linear)
        assert isinstance(place, nn.Embedding)
        width, modulation = embed.out_features, first.modulation
        assert isinstance(modulation, nn.Linear)
        # Where clean tokens are read by the noisy ones alone, keys and values are of mixtures, and queries are not.
        alone = len(part.layers) == 1

        def apply(tokens: Tensor, condition: Tensor) -> Tensor:
            shift, scale = modulation(condition).chunk(6, dim=-1)[:2]
            modulated: Tensor = tokens * (1 + scale) + shift
            return modulated

        return NoisedTap(
            field=field,
            weight="layers.0.qkv.weight",
            rows=slice(0, width if alone else 3 * width),
            embedding=embed.weight.detach(),
            offset=(place.weight + embed.bias).detach(),
            cut=cut,
            join=join,
            factor=lambda level: self.preconditioning.c_in(level.exp()),
            modulation=Modulation(
                weights=tuple(f"layers.{i}.modulation.weight" for i in range(len(part.layers))),
                curve=lambda level: self.condition(block, level.exp()),
                apply=apply,
            ),
            readout=f"layers.{len(part.layers) - 1}.mlp.2.weight",
            labels=None if labels is None else own[labels].get_parameter("weight").detach(),
            others=0 if alone else clean_tokens,
        )


def over(values: Tensor, like: Tensor) -> Tensor:
    """(N,) shaped to multiply (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
