"""What an attacker has of a release: the run's own mechanism, at work on the examples that it does not know.

The sums here are made by the company's own code with the objects that the plan makes (`privacy.dp_sgd.DPSGD` or
`privacy.secure_step.SecureStep`): every kind of clipping, several local steps, a moving clip, banded or shared noise
are attacked as they are. An attacker can subtract the examples that it knows, so the unknown ones are all that is
summed, and each takes part in every step: the case that differential privacy is about. Two things favour it: the sum
is not rounded for the secure sum, and not clipped once more as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..blocks import Denoiser, Draw
from ..blocks.examples import Examples
from ..blocks.noise import Source
from ..privacy.clipping import PerExampleClipping
from ..privacy.dp_sgd import DPSGD
from ..privacy.randomness import Randomness
from ..privacy.sampling import EpochSampling, PoissonSampling
from ..privacy.secure_step import SecureStep
from ..privacy.source import CryptographicSource
from .subject import Subject


@dataclass(frozen=True)
class Release:
    """Sum over `steps` steps of the clipped gradients of `examples` unknown examples, (P,) float64.

    `noise`: standard deviation of each coordinate; 0 in a control. `companies`: whose noise is in it.
    """

    vector: Tensor
    examples: int
    steps: int
    noise: float
    companies: int = 1

    def noised(self, deviation: float, generator: torch.Generator) -> Release:
        """With Gaussian noise of so much more: to find the noise at which an attack starts to win."""
        drawn = torch.randn(self.vector.shape, generator=generator, dtype=torch.float64)
        total = (self.noise**2 + deviation**2) ** 0.5
        return replace(self, vector=self.vector + deviation * drawn, noise=total)


def clip_of(mechanism: DPSGD | SecureStep) -> float:
    """The norm that one example's gradient is clipped to, at first where it moves."""
    return mechanism.max_grad_norm if isinstance(mechanism, DPSGD) else mechanism.noise.clip


def deviation(mechanism: DPSGD | SecureStep, companies: int = 1) -> float:
    """Standard deviation of a coordinate of what `companies` companies release, in the units of a gradient.

    Exact for steps with one clip; with a moving clip, that of its start.
    """
    if isinstance(mechanism, SecureStep):
        return float((companies * mechanism.noise.variance_share) ** 0.5 / mechanism.noise.scale)
    z = mechanism.noise_multiplier
    if mechanism.quantile_clip is not None:
        z = mechanism.quantile_clip.sum_noise_multiplier(z)
    banded = mechanism.banded() if z > 0 else None
    parts = float((mechanism.weights() ** 2).sum()) if banded is None else banded.sum_variance
    return float(z * mechanism.max_grad_norm * (parts * companies) ** 0.5)


def released(
    subject: Subject,
    block: int,
    examples: Examples,
    *names: object,
    noisy: bool,
    companies: int = 1,
    drawn: list[Draw] | None = None,
) -> Release:
    """What `companies` companies release of a block, `examples` (K, ...) being all that is unknown of their data.

    `names`: of the experiment; the same ones give the same noise draws of training with and without `noisy`. `drawn`
    takes the diffusion's noise draws of every step, for scoring.
    """
    mechanism = subject.mechanism(block)
    model, active = subject.in_training(block)
    _record(model, drawn)
    randomness = Randomness.from_seed(subject.seed, "release", block, *map(str, names))
    source = CryptographicSource(randomness)

    def losses(indices: Tensor, draws: int) -> Tensor:
        batch = examples[indices]
        return subject.objective(
            model, block=block, inputs=batch.inputs, targets=batch.targets, source=source, draws=draws
        )

    k = len(examples)
    others = Randomness.from_seed(subject.seed, "others' noise", block, *map(str, names))
    if isinstance(mechanism, SecureStep):
        if not noisy:
            with PerExampleClipping(
                active, max_grad_norm=mechanism.noise.clip, clipping=mechanism.clipping, examples_at_once=max(k, 1)
            ) as clipping:  # fmt: skip
                places = clipping.sum(
                    lambda p: losses(p, mechanism.noise_draws), examples=k, draws=mechanism.noise_draws
                )
            return Release(places.vector, k, 1, 0.0, companies)
        sure = replace(mechanism, sampling_rate=1.0, examples_at_once=max(k, 1))
        residues = sure.encode(active, losses, examples=k, randomness=randomness)
        zeros = torch.zeros(len(residues), dtype=torch.float64).numpy()
        for _ in range(companies - 1):
            residues += mechanism.noise.encode(zeros, others)
        residues &= (1 << mechanism.noise.bits) - 1
        vector = torch.from_numpy(mechanism.noise.decode_sum(residues))
        return Release(vector, k, 1, deviation(mechanism, companies), companies)
    # Epochs have every example once each already.
    by_epoch = isinstance(mechanism.sampling, EpochSampling)
    sampling = mechanism.sampling if by_epoch else PoissonSampling(1.0)
    quantile = mechanism.quantile_clip
    if not noisy and quantile is not None:
        quantile = replace(quantile, count_noise=0.0)
    sure_steps = replace(
        mechanism,
        sampling=sampling,
        noise_multiplier=mechanism.noise_multiplier if noisy else 0.0,
        quantile_clip=quantile,
        examples_at_once=max(k, 1),
    )
    update = sure_steps.train(active, losses, examples=k, randomness=randomness)
    vector = update * (-mechanism.expected_batch_size / mechanism.learning_rate)
    if noisy and companies > 1:
        more = deviation(mechanism, companies - 1)
        vector = vector + more * torch.from_numpy(others.normal(len(vector)))
    return Release(vector, k, mechanism.steps, deviation(mechanism, companies) if noisy else 0.0, companies)


def _record(model: Denoiser, drawn: list[Draw] | None) -> None:
    """Let the model keep its noise draws in `drawn`."""
    if drawn is not None:
        draw = model.draw

        def kept(block: int, targets: Tensor, source: Source) -> Draw:
            drawn.append(draw(block, targets, source))
            return drawn[-1]

        model.draw = kept  # type: ignore[method-assign]


def raw_gradient(
    subject: Subject, block: int, examples: Examples, *names: object, drawn: list[Draw] | None = None
) -> Release:
    """The sum of the examples' gradients before clipping and noise, from one step: what no run shows; `drawn` as in
    `released`."""
    model, active = subject.in_training(block)
    _record(model, drawn)
    randomness = Randomness.from_seed(subject.seed, "release", block, *map(str, names))
    draws = subject.plan.training.noise_draws
    loss = subject.objective(
        model, block=block, inputs=examples.inputs, targets=examples.targets,
        source=CryptographicSource(randomness), draws=draws,
    ).sum() / draws  # fmt: skip
    named = sorted((n, p) for n, p in active.named_parameters() if p.requires_grad)
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for (_, p), g in zip(named, found, strict=True)]
    vector = torch.cat([part.reshape(-1) for part in parts]).double()
    return Release(vector, len(examples), 1, 0.0)
