"""DP-SGD on one block (Abadi et al. 2016, algorithm 1), with batches drawn as accounted.

Under Poisson sampling every example joins a step with probability q on its own (`sampling` has other ways, each
with its own account); a step without examples still adds its noise, because the account assumes that it does. The
divisor is a public constant, not the batch's size: the number of examples that a company holds is private too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import PrivacyError
from .clipping import Clipping, PerExampleClipping
from .events import Event
from .mechanisms.banded import BandedNoise, BandedStream
from .mechanisms.gaussian import add_gaussian_noise
from .quantile_clip import QuantileClip
from .randomness import Randomness
from .sampling import EpochSampling, Sampling

Losses = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """One release: `steps` noisy steps, of which only the sum leaves. noise_multiplier 0 means no privacy.

    `sampling` draws the batches. With a `quantile_clip` the clip changes from step to step, starting at
    `max_grad_norm`. With `noise_bands` above 1 the noise is correlated (see `mechanisms.banded`); all epochs must
    then have the same batches. `proximal`, FedProx's mu (Li et al. 2020), pulls every step back to the start; it acts
    on what has been clipped and noised and on nothing else, so it changes no sensitivity.

    Raises:
        PrivacyError: a value is out of range, or correlated noise comes with other sampling, a quantile clip or
            a pull.
    """

    sampling: Sampling
    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    learning_rate: float
    steps: int
    noise_draws: int
    clipping: Clipping = "flat"
    quantile_clip: QuantileClip | None = None
    noise_bands: int = 1
    examples_at_once: int = 128
    records: int = 1
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if not self.noise_multiplier >= 0:
            raise PrivacyError(f"Expected noise_multiplier={self.noise_multiplier} >= 0.")
        if not self.expected_batch_size > 0:
            raise PrivacyError(f"Expected expected_batch_size={self.expected_batch_size} > 0.")
        if not self.proximal >= 0:
            raise PrivacyError(f"Expected proximal={self.proximal} >= 0.")
        if self.noise_bands > 1:
            if self.proximal > 0:
                raise PrivacyError("Expected proximal=0: correlated noise is taken back step by step.")
            if not isinstance(self.sampling, EpochSampling) or self.sampling.regroup:
                raise PrivacyError(
                    "Expected noise_bands=1: correlated noise needs EpochSampling(regroup=False)."
                )
            if self.quantile_clip is not None:
                raise PrivacyError("Expected no quantile_clip: correlated noise needs a clip that stays.")

    def event(self, dimension: int | None = None, examples: int | None = None) -> Event:
        """What the ledger is charged for this release of a block of `dimension` values; `examples`: the size of the
        data set, where the account needs it. Without a dimension, the event of real numbers."""
        banded = self.banded()
        if banded is not None:
            return banded.event(dimension)
        if dimension is not None and self.quantile_clip is not None:
            dimension += 1
        return self.sampling.event(self.noise_multiplier, self.steps, examples, dimension)

    def banded(self) -> BandedNoise | None:
        """The correlated noise of the steps; none where it is independent."""
        if self.noise_bands == 1 or not isinstance(self.sampling, EpochSampling):
            return None
        return BandedNoise(
            steps=self.steps,
            bands=self.noise_bands,
            separation=self.sampling.batch_count,
            noise_multiplier=self.noise_multiplier,
        )

    @property
    def shrinkage(self) -> float:
        """By how much a step's pull shortens the way from the start: the proximal operator of mu/2 |w - start|^2 at
        this rate, in closed form, and so stable for any mu."""
        return 1 / (1 + self.learning_rate * self.proximal)

    def weights(self) -> NDArray[np.float64]:
        """(steps,) with how much of each step's noisy sum there is in the update; without a pull, all of it."""
        return self.shrinkage ** np.arange(self.steps, 0, -1, dtype=np.float64)

    def train(self, block: nn.Module, losses: Losses, *, examples: int, randomness: Randomness) -> Tensor:
        """Take the steps on `block`, in place, and return its update (P,) in float64.

        `losses(indices, draws)` returns the losses of the named examples, the draws of one example side by
        side: (len(indices) * draws,), or of groups (len(indices) * records * draws,).
        """
        noise_multiplier = self.noise_multiplier
        if self.quantile_clip is not None:
            noise_multiplier = self.quantile_clip.sum_noise_multiplier(noise_multiplier)
        with PerExampleClipping(
            block,
            max_grad_norm=self.max_grad_norm,
            clipping=self.clipping,
            examples_at_once=self.examples_at_once,
        ) as clipping:
            start = nn.utils.parameters_to_vector(clipping.parameters).detach().double()
            position = start.clone()
            banded = self.banded() if noise_multiplier > 0 else None
            stream = (
                None
                if banded is None
                else BandedStream(banded, clipping.size, self.max_grad_norm, randomness)
            )
            for drawn in self.sampling.batches(examples, self.steps, randomness):
                batch = in_random_order(drawn, randomness)

                def of_places(places: Tensor, batch: Tensor = batch) -> Tensor:
                    return losses(batch[places], self.noise_draws)

                clipped = clipping.sum(
                    of_places, examples=len(batch), draws=self.noise_draws, records=self.records
                )
                if stream is not None:
                    noisy = stream.release(clipped)
                else:
                    noisy = add_gaussian_noise(clipped, noise_multiplier, randomness)
                position.sub_(noisy, alpha=self.learning_rate / self.expected_batch_size)
                if self.proximal > 0:
                    position.sub_(start).mul_(self.shrinkage).add_(start)
                nn.utils.vector_to_parameters(position.float(), clipping.parameters)
                if self.quantile_clip is not None:
                    clipping.max_grad_norm = self.quantile_clip.next(
                        clipped, self.expected_batch_size, randomness
                    )
        return position - start


def in_random_order(batch: Tensor, randomness: Randomness) -> Tensor:
    """The batch (n,) in a secret random order: see `grouping`, measure 2."""
    return batch[torch.from_numpy(randomness.permutation(len(batch)))]


def clip_to_norm(vector: Tensor, bound: float) -> Tensor:
    """Scale to L2 norm <= bound; bounds one company's influence on the sum. A vector that is not finite becomes zero.

    Projection on a ball increases no distance, so it costs no privacy, before the noise or after. There is no error
    for vectors that are not finite: a refusal would reveal the outcome of training.
    """
    norm = vector.norm()
    # No branch: the sum may have no noise yet, and timing must not reveal whether it was clipped.
    factor = torch.where(norm.isfinite(), bound / norm.clamp(min=bound), torch.zeros_like(norm))
    return vector.nan_to_num(0.0, 0.0, 0.0) * factor
