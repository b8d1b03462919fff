"""Twelve defects that break a privacy account, each planted in the code that trains, for as long as a context lasts.

They are what an audit is tested with: one that passes a broken step says nothing about a sound one. The function
that is replaced is the one that a company's step calls; all others stay as they are.

    with DEFECTS["noise off"].planted():
        residues = train_block(...)
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...privacy import clipping, dp_sgd
from ...privacy.clipping import ClippedSum, PerExampleClipping
from ...privacy.mechanisms.banded import BandedNoise, BandedStream
from ...privacy.mechanisms.gaussian import add_gaussian_noise
from ...privacy.mechanisms.skellam import SkellamNoise
from ...privacy.mechanisms.skellam_sampler import SkellamSampler
from ...privacy.randomness import Randomness
from ...privacy.sampling import PoissonSampling
from ...privacy.secure_aggregation import masks
from ...privacy.secure_aggregation.keys import derive
from ...privacy.source import CryptographicSource
from .seams import replaced

Mode = Literal["local", "secure_step"]


@dataclass(frozen=True)
class Defect:
    """`shows`: the statistic that it must refute. `modes`: of the plans whose step it is in."""

    name: str
    shows: str
    planted: Callable[[], AbstractContextManager[Any]]
    modes: tuple[Mode, ...] = ("local", "secure_step")


@contextmanager
def _all(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in contexts:
            stack.enter_context(each)
        yield


def mutated(function: Any, old: str, new: str) -> Any:
    """The function with `new` in place of `old` in its source, in its own module.

    Raises:
        InputError: `old` is not in the source exactly once; the defect no longer fits the code.
    """
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise InputError("old", old, f"expected it once in {function.__qualname__}")
    found: dict[str, Any] = {}
    exec(compile(source.replace(old, new), inspect.getfile(function), "exec"), function.__globals__, found)
    return found[function.__name__]


def noise_times(factor: float) -> AbstractContextManager[Any]:
    """Of all three mechanisms: a company's own noise, correlated noise, shares of noise."""
    gaussian, banded, sample = add_gaussian_noise, BandedStream._next, SkellamSampler.sample

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> Tensor:
        return gaussian(clipped, noise_multiplier * factor, randomness)

    def following(stream: BandedStream) -> Tensor:
        return banded(stream) * factor

    def drawn(sampler: SkellamSampler, n: int, randomness: Randomness) -> Any:
        if factor == 0:
            return np.zeros(n, dtype=np.int64)
        return sample(SkellamSampler(sampler.variance * factor**2), n, randomness)

    return _all(
        replaced(dp_sgd, "add_gaussian_noise", add),
        replaced(BandedStream, "_next", following),
        replaced(SkellamSampler, "sample", drawn),
    )


def missing_share() -> AbstractContextManager[Any]:
    """Companies count on all shares, those of tolerated dropouts and colluders too."""

    def share(noise: SkellamNoise) -> float:
        return noise.variance_total / noise.companies

    return replaced(SkellamNoise, "variance_share", property(share))


def clip_per_batch() -> AbstractContextManager[Any]:
    """The batch's sum is clipped, not each example's gradient."""
    summed = PerExampleClipping.sum

    def sum_(self: PerExampleClipping, losses: Any, **sizes: int) -> ClippedSum:
        clip, self.max_grad_norm = self.max_grad_norm, 1e30
        try:
            found = summed(self, losses, **sizes)
        finally:
            self.max_grad_norm = clip
        return ClippedSum(dp_sgd.clip_to_norm(found.vector, clip), clip, found.examples, found.within)

    return replaced(PerExampleClipping, "sum", sum_)


def nan_past_clip() -> AbstractContextManager[Any]:
    """A norm that is no number is not above the clip, so its example is added as it is."""
    factors = mutated(clipping.clip_factors, "torch.isfinite(squared_norms) & ", "")
    dropped = mutated(PerExampleClipping._factors, "~torch.isfinite(whole) | filling", "filling")
    return _all(
        replaced(clipping, "clip_factors", factors), replaced(PerExampleClipping, "_factors", dropped)
    )


def batch_divisor() -> AbstractContextManager[Any]:
    """The mean over the batch, whose size is private, in place of the sum over a constant."""
    train = mutated(dp_sgd.DPSGD.train, "/ self.expected_batch_size)", "/ max(len(batch), 1))")
    return replaced(dp_sgd.DPSGD, "train", train)


def wrong_rate() -> AbstractContextManager[Any]:
    """Batches are a tenth larger than accounted."""
    batches = PoissonSampling.batches

    def larger(
        sampling: PoissonSampling, examples: int, steps: int, randomness: Randomness
    ) -> Iterator[Tensor]:
        return batches(replace(sampling, rate=min(1.0, 1.1 * sampling.rate)), examples, steps, randomness)

    return replaced(PoissonSampling, "batches", larger)


def shuffled() -> AbstractContextManager[Any]:
    """A shuffled data set cut into batches of one size, accounted as Poisson batches."""

    def cut(sampling: PoissonSampling, examples: int, steps: int, randomness: Randomness) -> Iterator[Tensor]:
        count = max(1, round(1 / sampling.rate))
        for step in range(steps):
            if step % count == 0:
                order = np.array_split(randomness.permutation(examples), count)
            yield torch.from_numpy(np.sort(order[step % count]))

    return replaced(PoissonSampling, "batches", cut)


def noise_reused() -> AbstractContextManager[Any]:
    """Every step of every round has the noise of the first."""
    gaussian, sample, stream = add_gaussian_noise, SkellamSampler.sample, BandedStream.__init__

    def same() -> Randomness:
        return Randomness.from_seed(0, "reused")

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> Tensor:
        return gaussian(clipped, noise_multiplier, same())

    def drawn(sampler: SkellamSampler, n: int, randomness: Randomness) -> Any:
        return sample(sampler, n, same())

    def begun(self: BandedStream, noise: BandedNoise, size: int, clip: float, randomness: Randomness) -> None:
        stream(self, noise, size, clip, same())

    return _all(
        replaced(dp_sgd, "add_gaussian_noise", add),
        replaced(SkellamSampler, "sample", drawn),
        replaced(BandedStream, "__init__", begun),
    )


def masks_reused() -> AbstractContextManager[Any]:
    """A pair's mask follows from their names alone, so that it is the same in every sum."""

    def pair(
        private: Any, digest: bytes, own: tuple[str, bytes], peer: tuple[str, bytes]
    ) -> tuple[bytes, bool]:
        first, second = sorted((own[0], peer[0]))
        return derive(b"pair", bytes(32), "pair mask", first.encode(), second.encode()), own[0] == first

    return replaced(masks, "pair_mask_key", pair)


def seeded_diffusion_noise() -> AbstractContextManager[Any]:
    """Diffusion noise from a generator of torch, of whose seed 32 bits count."""

    def generator(source: CryptographicSource) -> torch.Generator:
        return torch.Generator().manual_seed(int(source._randomness.integers(1 << 32, 1)[0]))

    def uniform(source: CryptographicSource, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=generator(source), dtype=dtype)

    def normal(source: CryptographicSource, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator(source))

    return _all(
        replaced(CryptographicSource, "uniform", uniform), replaced(CryptographicSource, "normal", normal)
    )


_VARIANCE = "noise variance / promised"
_ALL = (
    Defect("noise off", _VARIANCE, lambda: noise_times(0.0)),
    Defect("noise times .5", _VARIANCE, lambda: noise_times(0.5)),
    Defect("noise times .9", _VARIANCE, lambda: noise_times(0.9)),
    Defect("a missing share of Skellam noise", _VARIANCE, missing_share, ("secure_step",)),
    Defect("clip per batch", "change of others / clip", clip_per_batch),
    Defect("NaN past the clip", "sensitivity / clip", nan_past_clip),
    Defect("divisor that depends on the batch", "sent - promised / its norm", batch_divisor, ("local",)),
    Defect("wrong sampling rate", "sampling rate / promised", wrong_rate),
    Defect("shuffled accounted as Poisson", "variance of batch sizes / promised", shuffled),
    Defect("noise reused over rounds", "correlation of steps", noise_reused),
    Defect("masks reused", "mask keys in two sums", masks_reused),
    Defect(
        "diffusion noise from a 32-bit seed", "24 x diffusion values / random bits", seeded_diffusion_noise
    ),
)
DEFECTS = {each.name: each for each in _ALL}
