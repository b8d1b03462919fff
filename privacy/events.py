"""Releases as data: what a mechanism did, in plain validated fields, without its cost.

Purpose: a ledger of events can be recomputed years later by another accountant, so the meaning of a
(mechanism, version) never changes; a changed mechanism gets a new version or a new name. How the batches were
drawn is part of the event, because it decides which account is valid:

    GaussianSteps            Poisson batches
    TruncatedGaussianSteps   Poisson batches with a cap, surplus dropped at random
    EpochGaussian            every example in exactly one random batch an epoch; no amplification is claimed
    FixedSizeGaussianSteps   batches of one size, without replacement; replace-one adjacency
    SkellamSteps             integer sums of Poisson batches with Skellam noise from all companies
    SharedSkellamSteps       the same, and how many companies' noise that is
    NoNoise                  anything without noise; charged so that every later account includes it

Version 2 of the Gaussian ones also says how many values get noise, on which the cost of floating point depends
(`rounding`). Version 1 does not and stands for noise in real numbers: old ledgers hold it, and formulas are tested
with it.
"""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from dp_accounting import dp_event

from ..errors import InputError

UNIT = "one example of one company"
_OF_GROUPS = "one group of one company, as one example "
ADD_REMOVE = "add or remove one example"
REPLACE_ONE = "replace one example"
ADJACENCIES = (ADD_REMOVE, REPLACE_ONE)
MAX_STEPS = 1_000_000
MAX_EXAMPLES = 1 << 53
MAX_DIMENSION = 1 << 53
# Less noise than this, in units of the sensitivity, counts as none: its epsilon is in the thousands.
SMALLEST_NOISE = 0.01


@dataclass(frozen=True, kw_only=True)
class Event(ABC):
    """One release. Fields are checked and converted to plain numbers when it is built.

    `NAME` and `version` stand for the meaning in JSON; `mechanism` is its name in texts. The event is the composition
    of `steps` times `step`.

    Raises:
        InputError: a field is out of range.
    """

    NAME: ClassVar[str]
    VERSIONS: ClassVar[tuple[int, ...]] = (1,)
    COUNT: ClassVar[str] = "steps"
    adjacency: ClassVar[str] = ADD_REMOVE
    mechanism: ClassVar[str]

    if TYPE_CHECKING:  # at run time this property would become the default of the field of that name

        @property
        def steps(self) -> int: ...

    @property
    def version(self) -> int:
        return 1

    @property
    def values(self) -> int:
        """How many values got noise in floating point; 0 for noise in whole or real numbers."""
        return 0

    def to_json(self) -> str:
        return json.dumps({"mechanism": self.NAME, "version": self.version, **self._values()})

    def _values(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The event that `to_json` wrote.

        Raises:
            InputError: the text is anything else, or of another class than `cls`.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError("event", text, "must be a JSON object") from error
        if not isinstance(values, dict):
            raise InputError("event", text, "must be a JSON object")
        name, version = values.pop("mechanism", None), values.pop("version", None)
        kind = next((k for k in EVENTS if name == k.NAME and version in k.VERSIONS), None)
        if kind is None or type(version) is not int or not issubclass(kind, cls):
            known = ", ".join(f"{k.NAME} {v}" for k in EVENTS if issubclass(k, cls) for v in k.VERSIONS)
            raise InputError("event", text, f"must be one of these mechanisms and versions: {known}")
        expected = {each.name for each in fields(kind)} - ({"dimension"} if version == 1 else set())
        if set(values) != expected:
            raise InputError("event", text, f"must have exactly the fields {sorted(expected)}")
        if version == 2 and values.get("dimension", 0) is None:
            raise InputError("event", text, "must say its dimension in version 2")
        return kind(**values)

    def times(self, n: int) -> Self:
        """The same release n times.

        Raises:
            InputError: that is more than MAX_STEPS compositions.
        """
        return replace(self, **{self.COUNT: count("n", n) * getattr(self, self.COUNT)})

    @property
    def step(self) -> Self:
        """A single one of the compositions; accountants merge equal steps of different releases by it."""
        return replace(self, **{self.COUNT: 1})

    @abstractmethod
    def dp_event(self) -> dp_event.DpEvent | None:
        """The same release as an event of dp-accounting, for another accountant; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class GaussianEvent(Event):
    """Gaussian noise in floating point, on `dimension` values a step; None: in real numbers (version 1)."""

    VERSIONS: ClassVar[tuple[int, ...]] = (1, 2)

    dimension: int | None = None

    def __post_init__(self) -> None:
        if self.dimension is not None:
            _set(self, dimension=count("dimension", self.dimension, MAX_DIMENSION))

    @property
    def version(self) -> int:
        return 1 if self.dimension is None else 2

    @property
    def values(self) -> int:
        return self.steps * (self.dimension or 0)

    def _values(self) -> dict[str, Any]:
        values = asdict(self)
        dimension = values.pop("dimension")
        return values if dimension is None else values | {"dimension": dimension}


@dataclass(frozen=True, kw_only=True)
class GaussianSteps(GaussianEvent):
    """`steps` sums of a Poisson batch (rate q), clipped to C, plus N(0, (z C)^2) noise (Abadi et al. 2016)."""

    NAME: ClassVar[str] = "poisson_subsampled_gaussian"
    mechanism: ClassVar[str] = "Poisson-subsampled Gaussian"

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, sampling_rate=_rate(self.sampling_rate), noise_multiplier=_noise(self.noise_multiplier))
        _set(self, steps=count("steps", self.steps))

    def dp_event(self) -> dp_event.DpEvent:
        step = dp_event.PoissonSampledDpEvent(
            self.sampling_rate, dp_event.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_event.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True, kw_only=True)
class TruncatedGaussianSteps(GaussianEvent):
    """As GaussianSteps, but of a batch above `batch_cap` only that many random examples stay.

    Dropping makes examples depend on each other: one that joins may displace another, which costs privacy (Ganesh et
    al. 2025, https://arxiv.org/abs/2508.15089, section 4.3). `examples` is the size of the data set; the account
    covers its neighbours with one example more and one less.
    """

    NAME: ClassVar[str] = "truncated_poisson_subsampled_gaussian"
    mechanism: ClassVar[str] = "Poisson-subsampled Gaussian with capped batches"

    sampling_rate: float
    noise_multiplier: float
    steps: int
    examples: int
    batch_cap: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, sampling_rate=_rate(self.sampling_rate), noise_multiplier=_noise(self.noise_multiplier))
        _set(self, steps=count("steps", self.steps))
        _set(self, examples=count("examples", self.examples, MAX_EXAMPLES))
        _set(self, batch_cap=count("batch_cap", self.batch_cap, MAX_EXAMPLES))

    def dp_event(self) -> dp_event.DpEvent:
        # The library's size is that of the larger of two neighbours.
        step = dp_event.TruncatedSubsampledGaussianDpEvent(
            dataset_size=self.examples + 1,
            sampling_probability=self.sampling_rate,
            truncated_batch_size=self.batch_cap,
            noise_multiplier=self.noise_multiplier,
        )
        return dp_event.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True, kw_only=True)
class EpochGaussian(GaussianEvent):
    """`epochs` epochs in which every example is in exactly one noisy sum, drawn on its own (balls and bins).

    Such batches are not Poisson batches and may not be accounted as such (Chua et al. 2024,
    https://arxiv.org/abs/2412.16802); no amplification is claimed here: whatever batch an example is in, an epoch is
    one Gaussian release of it. `dimension` is that of one sum: an example does not change the law of the others.
    """

    NAME: ClassVar[str] = "epoch_gaussian"
    COUNT: ClassVar[str] = "epochs"
    mechanism: ClassVar[str] = "Gaussian, each example once an epoch"

    noise_multiplier: float
    epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, noise_multiplier=_noise(self.noise_multiplier), epochs=count("epochs", self.epochs))

    @property
    def steps(self) -> int:
        return self.epochs

    def dp_event(self) -> dp_event.DpEvent:
        return dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(self.noise_multiplier), self.epochs)


@dataclass(frozen=True, kw_only=True)
class FixedSizeGaussianSteps(GaussianEvent):
    """`steps` sums of `batch_size` random examples without replacement, clipped to C, plus N(0, (z C)^2).

    The number of examples is public: two data sets are neighbours if they differ in one example. Replacing it
    moves the sum by up to 2 C, which the account includes (Wang, Balle, Kasiviswanathan 2019, Theorem 27).
    """

    NAME: ClassVar[str] = "fixed_size_gaussian"
    adjacency: ClassVar[str] = REPLACE_ONE
    mechanism: ClassVar[str] = "Gaussian on batches of fixed size without replacement"

    examples: int
    batch_size: int
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, examples=count("examples", self.examples, MAX_EXAMPLES))
        _set(self, batch_size=count("batch_size", self.batch_size, MAX_EXAMPLES))
        _set(self, noise_multiplier=_noise(self.noise_multiplier), steps=count("steps", self.steps))
        if self.batch_size > self.examples:
            raise InputError("batch_size", self.batch_size, f"must be at most examples={self.examples}")

    def dp_event(self) -> dp_event.DpEvent:
        # dp-accounting's noise is in units of the sensitivity, which under replace-one is 2 C.
        step = dp_event.SampledWithoutReplacementDpEvent(
            self.examples, self.batch_size, dp_event.GaussianDpEvent(self.noise_multiplier / 2)
        )
        return dp_event.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True, kw_only=True)
class SkellamSteps(Event):
    """`steps` secure sums over Poisson batches (rate q), in whole numbers, plus Skellam noise in every value.

    l2, l1: bounds on the norms of one example's scaled, rounded gradient, which fail with probability `beta` a
    step; variance: of the noise in one value of the sum that honest companies which did not drop out have added
    (Agarwal, Kairouz, Liu 2021, Corollary 3.6). In integer units.
    """

    NAME: ClassVar[str] = "poisson_subsampled_skellam"
    mechanism: ClassVar[str] = "Poisson-subsampled Skellam, noise of all companies together"

    sampling_rate: float
    steps: int
    l2: float
    l1: float
    variance: float
    beta: float

    def __post_init__(self) -> None:
        _set(self, sampling_rate=_rate(self.sampling_rate), steps=count("steps", self.steps))
        _set(self, beta=real("beta", self.beta))
        if not 0 < self.beta < 1:
            raise InputError("beta", self.beta, "must be above 0 and below 1")
        _set(self, l2=real("l2", self.l2), l1=real("l1", self.l1), variance=real("variance", self.variance))
        # A vector of whole numbers that is not zero has l2 >= 1, and l1 >= l2 holds for every vector.
        if not self.l2 >= 1:
            raise InputError("l2", self.l2, "must be at least 1, in integer units")
        if not self.l1 >= self.l2:
            raise InputError("l1", self.l1, f"must be at least l2={self.l2}")
        if not self.variance > 0:
            raise InputError("variance", self.variance, "must be above 0: no noise, no guarantee")

    def dp_event(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class SharedSkellamSteps(SkellamSteps):
    """As SkellamSteps, with the origin of the noise: `variance` is that of `shares` companies' equal shares, and
    `colluders` further companies may tell the coordinator their shares, or add none.

    Releases of one plan compare equal whatever the number of shares: all have the same total variance.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (2,)

    shares: int = field(compare=False)
    colluders: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, shares=count("shares", self.shares))
        if self.colluders != 0:
            _set(self, colluders=count("colluders", self.colluders))

    @property
    def version(self) -> int:
        return 2


@dataclass(frozen=True, kw_only=True)
class NoNoise(Event):
    """`steps` steps without noise. Nothing bounds what they reveal: from here on epsilon is infinite."""

    NAME: ClassVar[str] = "no_noise"
    mechanism: ClassVar[str] = "no noise"
    noise_multiplier: ClassVar[float] = 0.0

    steps: int

    def __post_init__(self) -> None:
        _set(self, steps=count("steps", self.steps))

    def dp_event(self) -> dp_event.DpEvent:
        return dp_event.NonPrivateDpEvent()


EVENTS: tuple[type[Event], ...] = (
    GaussianSteps,
    TruncatedGaussianSteps,
    EpochGaussian,
    FixedSizeGaussianSteps,
    SkellamSteps,
    SharedSkellamSteps,
    NoNoise,
)


def group_unit(words: str) -> str:
    """The unit of a ledger whose examples are groups of records; `words` say which."""
    return _OF_GROUPS + words


def is_unit(text: object) -> bool:
    """Whether a row may name this as its unit."""
    return isinstance(text, str) and (text == UNIT or text.startswith(_OF_GROUPS))


def check_event(value: object) -> Event:
    """`value`, if it is of a kind that a ledger can write and read back; InputError if not."""
    if not isinstance(value, Event) or type(value) not in EVENTS:
        raise InputError("event", value, f"must be one of {', '.join(kind.__name__ for kind in EVENTS)}")
    return value


def real(field: str, value: object) -> float:
    """`value` as a finite float; InputError if it is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(field, value, "must be a finite number")
    return float(value)


def count(field: str, value: object, limit: int = MAX_STEPS) -> int:
    """`value` as a whole number from 1 to `limit`; InputError if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= limit:
        raise InputError(field, value, f"must be an integer from 1 to {limit}")
    return int(value)


def _rate(value: object) -> float:
    rate = real("sampling_rate", value)
    if not 0 < rate <= 1:
        raise InputError("sampling_rate", rate, "must be above 0 and at most 1")
    return rate


def _noise(value: object) -> float:
    noise = real("noise_multiplier", value)
    if not noise > 0:
        raise InputError("noise_multiplier", noise, "must be above 0: no noise, no guarantee")
    return noise


def _set(event: Event, **values: Any) -> None:
    # Converted, since numpy scalars do not serialise; the dataclass is frozen.
    for name, value in values.items():
        object.__setattr__(event, name, value)
