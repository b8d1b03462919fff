"""A company's own step, recorded as it runs: what was drawn, clipped, noised and sent.

The step is `client.training.train_block` itself with the objects that it builds from the plan. It is watched through
what it is given (randomness, examples, model) and at four places where its parts meet: batches, clipped sums, noise,
shares of noise. Nothing is computed a second time here but the probes of `neighbours`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...blocks import Denoiser, block_parameters
from ...blocks.denoiser import Draw
from ...blocks.examples import Examples, Groups
from ...client import training
from ...client.batches import examples_at_once
from ...client.policy import Policy
from ...client.units import groups_of
from ...privacy import dp_sgd
from ...privacy.clipping import ClippedSum, PerExampleClipping
from ...privacy.denormals import flushed
from ...privacy.mechanisms.banded import BandedStream
from ...privacy.mechanisms.skellam import SkellamNoise
from ...privacy.quantile_clip import QuantileClip
from ...privacy.randomness import Randomness
from ...privacy.sampling import EpochSampling, PoissonSampling
from ...protocol.release import block_size, mechanism
from ...settings import Plan
from .neighbours import Neighbours, compare
from .seams import replaced
from .tape import Tape

Array = npt.NDArray[np.float64]
Places = slice | npt.NDArray[np.int64]  # of a vector (P,)


@dataclass(frozen=True, kw_only=True)
class OwnStep:
    """What a company trains in a round, and with which rules. `companies`: the size of its cohort."""

    model: Denoiser
    block: int
    data: Examples
    plan: Plan
    companies: int
    policy: Policy

    @property
    def size(self) -> int:
        """P, the values of an update."""
        return block_size(self.model, self.block, self.plan.training)

    def tensors(self) -> dict[str, int]:
        """The tensors of an update in their order, with their sizes."""
        active = self.model.freeze_all_but(self.block, self.plan.training.interface)
        return {name: p.numel() for name, p in block_parameters(active)}


@dataclass
class StepRecord:
    """One local step: `clean` and `noisy` are sums at the kept places, before learning rate and divisor. `drawn`: the
    batch that was drawn for it; `loaded`: the examples that it read; `examples`: how many it summed."""

    sensitivity: float
    examples: int
    clean: Array
    noisy: Array | None = None
    loaded: set[int] = field(default_factory=set)
    drawn: set[int] = field(default_factory=set)
    count_noise: float | None = None  # of a moving clip, in its deviations


@dataclass
class Recording:
    """One round's training: its steps, their sums `clean` and `noisy` (P,) over all steps, as the update has them,
    and the residues (P,) that it returned. `shared`: what noise was added to, where companies share it. `values`: of
    diffusion noise, drawn from `bits` of randomness. `shrinkage`: a step's, of what the steps before it have made."""

    places: Places
    clean: Array
    noisy: Array
    steps: list[StepRecord] = field(default_factory=list)
    residues: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))
    shared: Array | None = None
    neighbours: Neighbours | None = None
    values: int = 0
    bits: float = 0.0
    shrinkage: float = 1.0

    def forget(self) -> None:
        """Free what has P values."""
        self.clean = self.noisy = np.zeros(0)
        self.shared, self.residues = None, np.zeros(0, dtype=np.uint32)
        for step in self.steps:
            step.clean, step.noisy = np.zeros(0), None


class _Watched(Examples):
    """Examples that tell which units of privacy are read: which of them, or whose groups."""

    def __init__(self, own: Examples, read: set[int], groups: Groups | None) -> None:
        super().__init__(own.inputs, own.targets, own.groups)
        # The class is frozen.
        self.__dict__["read"] = read
        self.__dict__["units"] = np.arange(len(own)) if groups is None else groups.numbers

    def __getitem__(self, index: Any) -> Examples:
        self.__dict__["read"].update(self.__dict__["units"][index].tolist())
        return super().__getitem__(index)


def record(
    own: OwnStep, randomness: Randomness, *, places: Places = slice(None), probe: bool = True
) -> Recording:
    """One round of the company's own training; the model is as before afterwards. Of steps, `places` are kept.

    With `probe`, the first step that has examples is repeated on neighbouring batches.
    """
    flushed(
        lambda: examples_at_once(own.model, own.block, own.plan, own.policy)
    )  # its passes are not recorded
    before = {name: p.detach().clone() for name, p in own.model.named_parameters()}
    shrinkage = 1.0 if own.plan.secure_step else mechanism(own.plan).shrinkage
    found = Recording(places, np.zeros(own.size), np.zeros(own.size), shrinkage=shrinkage)
    tape, read = Tape(randomness), set[int]()
    try:
        with _watching(own.model, found, tape, read, probe):
            found.residues = training.train_block(
                own.model,
                own.block,
                _Watched(own.data, read, groups_of(own.plan, own.data)),
                own.plan,
                own.companies,
                tape,
                own.policy,
            )
    finally:
        with torch.no_grad():
            for name, p in own.model.named_parameters():
                p.copy_(before[name])
    return found


@contextmanager
def _watching(model: Denoiser, found: Recording, tape: Tape, read: set[int], probe: bool) -> Iterator[None]:
    drawn: list[set[int]] = []

    def batches(original: Callable[..., Iterator[Tensor]]) -> Callable[..., Iterator[Tensor]]:
        def watched(*args: Any, **kwargs: Any) -> Iterator[Tensor]:
            for batch in original(*args, **kwargs):
                drawn.append(set(batch.tolist()))
                yield batch

        return watched

    def summed(original: Callable[..., ClippedSum]) -> Callable[..., ClippedSum]:
        def watched(
            clipping: PerExampleClipping, losses: Any, *, examples: int, draws: int = 1, records: int = 1
        ) -> ClippedSum:
            read.clear()
            with tape.kept():
                result = original(clipping, losses, examples=examples, draws=draws, records=records)
                clean = _array(result.vector)
                found.clean = found.shrinkage * (found.clean + clean)
                step = StepRecord(result.sensitivity, examples, clean[found.places].copy())
                step.loaded, step.drawn = set(read), drawn[-1] if drawn else set()
                found.steps.append(step)
                if probe and examples and found.neighbours is None:
                    found.neighbours = compare(
                        original, clipping, losses, result, examples, draws, records, tape
                    )
            return result

        return watched

    def noised(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(*args: Any, **kwargs: Any) -> Tensor:
            result = original(*args, **kwargs)
            noisy = _array(result)
            found.noisy = found.shrinkage * (found.noisy + noisy)
            found.steps[-1].noisy = noisy[found.places].copy()
            return result

        return watched

    def shared(original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(noise: SkellamNoise, vector: Array, randomness: Randomness) -> Any:
            found.shared = vector.copy()
            return original(noise, vector, randomness)

        return watched

    def counted(original: Callable[..., float]) -> Callable[..., float]:
        def watched(clip: QuantileClip, clipped: ClippedSum, randomness: Randomness) -> float:
            result = original(clip, clipped, randomness)
            if clip.count_noise > 0:
                off = result - (clipped.within - clipped.examples / 2)
                found.steps[-1].count_noise = off / clip.count_noise
            return result

        return watched

    def draw(original: Callable[..., Draw]) -> Callable[..., Draw]:
        def watched(*args: Any, **kwargs: Any) -> Draw:
            before = tape.bits
            result = original(*args, **kwargs)
            found.bits += tape.bits - before
            found.values += sum(_drawn(values) for values in (result.level, result.noise))
            return result

        return watched

    places: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (PoissonSampling, "batches", batches),
        (EpochSampling, "batches", batches),
        (PerExampleClipping, "sum", summed),
        (dp_sgd, "add_gaussian_noise", noised),
        (BandedStream, "release", noised),
        (SkellamNoise, "encode", shared),
        (QuantileClip, "_count", counted),
        (model, "draw", draw),
    ]
    with ExitStack() as stack:
        for owner, name, watch in places:
            stack.enter_context(replaced(owner, name, watch(getattr(owner, name))))
        yield


def _drawn(values: Tensor) -> int:
    """How many values were drawn: none where they are all the same, as of an objective that has no noise."""
    varied = values.numel() > 0 and bool((values != values.flatten()[0]).any())
    return values.numel() if varied else 0


def _array(vector: Tensor) -> Array:
    found: Array = vector.detach().double().cpu().numpy().copy()
    return found
