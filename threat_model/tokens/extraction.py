"""How well a model learns a secret that stands in one company's data (Carlini et al. 2019, arXiv 1802.08232).

Canaries are random sequences behind a common start. After training, a canary's loss is ranked among the losses of
sequences drawn in the same way that were in no data: exposure = log2 |R| - log2 rank, whose mean is 1.44 bits for a
canary that left no trace, and log2 |R| for one that stands out. What is ranked is the loss after training less that
before, as the public model is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...blocks import Denoiser, Draw, block_parameters
from ...blocks.examples import Examples
from ...blocks.masked import MaskedDenoiser
from ...blocks.noise import Seeded
from ...privacy.clipping import pass_size
from ...privacy.dp_sgd import DPSGD, clip_to_norm
from ...privacy.randomness import Randomness
from ...privacy.sampling import PoissonSampling
from ...privacy.secure_step import SecureStep
from ...privacy.source import CryptographicSource
from ...server.optimizer import BlockOptimizer
from ..intervals import Array
from ..subject import Subject

_SECRET = 8  # random tokens at a canary's end
_DRAWS = 4  # noise draws of a loss, the same ones for every sequence
_AT_ONCE = 128


@dataclass(frozen=True)
class Secrets:
    """Sequences (n, T) with one start and random ends: canaries that are inserted so many `times` each, as many that
    are not, and those that both are ranked among."""

    once: Tensor
    often: Tensor
    never: Tensor
    rivals: Tensor
    times: int

    @classmethod
    def draw(
        cls, public: Tensor, generator: torch.Generator, *, canaries: int, often: int, times: int, rivals: int
    ) -> Secrets:
        """`public` (N, T): texts that give the common start, and the values that secrets are made of."""
        start = public[int(torch.randint(len(public), (), generator=generator))]
        values = public.unique()
        counts = (canaries, often, canaries, rivals)
        texts = start.repeat(sum(counts), 1)
        ends = torch.randint(len(values), (sum(counts), min(_SECRET, len(start) - 1)), generator=generator)
        texts[:, -ends.shape[1] :] = values[ends]
        once, often_, never, others = texts.split(counts)
        return cls(once, often_, never, others, times)

    def inserted_into(self, data: Examples) -> Examples:
        """The company's data with the canaries: input and target of a text are the same."""
        texts = torch.cat([self.once, self.often.repeat(self.times, 1)])
        return Examples(torch.cat([data.inputs, texts]), torch.cat([data.targets, texts]))

    def exposures(self, losses: Callable[[Tensor], Tensor]) -> dict[str, Array]:
        """Bits of each canary, by kind; `losses` of texts (n, T), the less the better known."""
        rivals = losses(self.rivals)
        found: dict[str, Array] = {}
        for kind, texts in (("once", self.once), ("often", self.often), ("never", self.never)):
            rank = 1 + (rivals[None] < losses(texts)[:, None]).sum(dim=1)
            found[kind] = (np.log2(len(rivals) + 1) - rank.double().log2()).numpy()
        return found


def untraced(rivals: int) -> float:
    """The mean exposure in bits of a canary that left no trace: its rank is uniform."""
    ranks = np.arange(1, rivals + 2)
    return float(np.log2(rivals + 1) - np.log2(ranks).mean())


class LocalRun:
    """One company alone trains one block with the run's own mechanism and server optimiser, round by round.

    That favours the attacker: no other company's data or noise comes to the company's own.
    """

    def __init__(
        self, subject: Subject, block: int, data: Examples, randomness: Randomness, *, noisy: bool
    ) -> None:
        self._subject, self._block, self._data, self._randomness = subject, block, data, randomness
        self.model = copy.deepcopy(subject.model)
        self._active = self.model.freeze_all_but(block, subject.plan.training.interface).train()
        self._parameters = [p for _, p in block_parameters(self._active)]
        self._vector = nn.utils.parameters_to_vector(self._parameters).detach()
        self._optimizer = BlockOptimizer(subject.plan.training, len(self._vector))
        self._source = CryptographicSource(randomness)
        self._mechanism, self._noisy = subject.mechanism(block), noisy

    def round(self) -> None:
        plan = self._subject.plan
        nn.utils.vector_to_parameters(self._vector, self._parameters)
        update = clip_to_norm(self._update(), plan.company_clip)
        self._vector = self._optimizer.step(self._vector, update.float())
        nn.utils.vector_to_parameters(self._vector, self._parameters)

    def _losses(self, indices: Tensor, draws: int) -> Tensor:
        batch = self._data[indices]
        return self._subject.objective(
            self.model, block=self._block, inputs=batch.inputs, targets=batch.targets, source=self._source,
            draws=draws,
        )  # fmt: skip

    def _update(self) -> Tensor:
        mechanism, n = self._mechanism, len(self._data)
        training = self._subject.plan.training
        size = pass_size(training.expected_batch_size)
        if isinstance(mechanism, SecureStep):
            if self._noisy:
                own = replace(mechanism, examples_at_once=size)
                residues = own.encode(self._active, self._losses, examples=n, randomness=self._randomness)
                total = torch.from_numpy(own.noise.decode_sum(residues))
                return total * (-training.local_learning_rate / training.expected_batch_size)
            mechanism = DPSGD(
                sampling=PoissonSampling(mechanism.sampling_rate), noise_multiplier=0.0,
                max_grad_norm=mechanism.noise.clip, expected_batch_size=training.expected_batch_size,
                learning_rate=training.local_learning_rate, steps=1, noise_draws=mechanism.noise_draws,
                clipping=mechanism.clipping,
            )  # fmt: skip
        quantile = mechanism.quantile_clip
        if not self._noisy and quantile is not None:
            quantile = replace(quantile, count_noise=0.0)
        own_step = replace(
            mechanism, examples_at_once=size, quantile_clip=quantile,
            noise_multiplier=mechanism.noise_multiplier if self._noisy else 0.0, proximal=training.proximal,
        )  # fmt: skip
        return own_step.train(self._active, self._losses, examples=n, randomness=self._randomness)


class Losses:
    """The loss of texts (n, T) under a block, less that before training: (n,), at noise draws common to all."""

    def __init__(self, subject: Subject, block: int, generator: torch.Generator) -> None:
        self._subject, self._block = subject, block
        some = subject.public.targets[:1].repeat(_DRAWS, 1)
        self._draw = subject.model.draw(block, some, Seeded(generator))
        if isinstance(subject.model, MaskedDenoiser):
            # Masked are parts of the secret alone: what is asked for is the secret, given all else.
            noise = torch.ones_like(self._draw.noise)
            noise[:, -_SECRET:] = (torch.rand(noise[:, -_SECRET:].shape, generator=generator) < 0.5).float()
            self._draw = Draw(self._draw.level, noise)

    @torch.no_grad()
    def gained(self, model: Denoiser, texts: Tensor) -> Tensor:
        parts = [
            self._of(model, part) - self._of(self._subject.model, part) for part in texts.split(_AT_ONCE)
        ]
        return torch.cat(parts)

    def _of(self, model: Denoiser, texts: Tensor) -> Tensor:
        n = len(texts)
        draw = Draw(
            self._draw.level.repeat(n), self._draw.noise.repeat(n, *[1] * (self._draw.noise.dim() - 1))
        )
        losses = self._subject.objective.at(
            model, self._block, model.context(self._block, texts), texts.repeat_interleave(_DRAWS, 0), draw
        )
        return losses.view(n, _DRAWS).double().mean(dim=1)
