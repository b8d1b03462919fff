"""Releases as data: their JSON is a promise, their fields are checked, other JSON is refused."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from fedblocks.errors import InputError
from fedblocks.privacy.events import (
    ADD_REMOVE,
    EVENTS,
    MAX_STEPS,
    REPLACE_ONE,
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    NoNoise,
    SharedSkellamSteps,
    SkellamSteps,
    TruncatedGaussianSteps,
    check_event,
)

# The text is what ledgers on disk hold: it may never change.
WRITTEN: list[tuple[Event, str]] = [
    (
        GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20),
        (
            '{"mechanism": "poisson_subsampled_gaussian", "version": 1, "sampling_rate": 0.02, '
            '"noise_multiplier": 1.5, "steps": 20}'
        ),
    ),
    (
        TruncatedGaussianSteps(
            sampling_rate=0.01, noise_multiplier=1.0, steps=7, examples=10_000, batch_cap=150
        ),
        (
            '{"mechanism": "truncated_poisson_subsampled_gaussian", "version": 1, "sampling_rate": 0.01, '
            '"noise_multiplier": 1.0, "steps": 7, "examples": 10000, "batch_cap": 150}'
        ),
    ),
    (
        EpochGaussian(noise_multiplier=4.0, epochs=3),
        '{"mechanism": "epoch_gaussian", "version": 1, "noise_multiplier": 4.0, "epochs": 3}',
    ),
    (
        FixedSizeGaussianSteps(examples=1000, batch_size=10, noise_multiplier=2.0, steps=5),
        (
            '{"mechanism": "fixed_size_gaussian", "version": 1, "examples": 1000, "batch_size": 10, '
            '"noise_multiplier": 2.0, "steps": 5}'
        ),
    ),
    (
        GaussianSteps(sampling_rate=0.02, noise_multiplier=1.5, steps=20, dimension=900),
        (
            '{"mechanism": "poisson_subsampled_gaussian", "version": 2, "sampling_rate": 0.02, '
            '"noise_multiplier": 1.5, "steps": 20, "dimension": 900}'
        ),
    ),
    (
        TruncatedGaussianSteps(
            sampling_rate=0.01, noise_multiplier=1.0, steps=7, examples=10_000, batch_cap=150, dimension=1
        ),
        (
            '{"mechanism": "truncated_poisson_subsampled_gaussian", "version": 2, "sampling_rate": 0.01, '
            '"noise_multiplier": 1.0, "steps": 7, "examples": 10000, "batch_cap": 150, "dimension": 1}'
        ),
    ),
    (
        EpochGaussian(noise_multiplier=4.0, epochs=3, dimension=5),
        '{"mechanism": "epoch_gaussian", "version": 2, "noise_multiplier": 4.0, "epochs": 3, "dimension": 5}',
    ),
    (
        FixedSizeGaussianSteps(examples=1000, batch_size=10, noise_multiplier=2.0, steps=5, dimension=7),
        (
            '{"mechanism": "fixed_size_gaussian", "version": 2, "examples": 1000, "batch_size": 10, '
            '"noise_multiplier": 2.0, "steps": 5, "dimension": 7}'
        ),
    ),
    (
        SkellamSteps(sampling_rate=0.5, steps=2, l2=1000.0, l1=30000.0, variance=1e6, beta=2.0**-40),
        (
            '{"mechanism": "poisson_subsampled_skellam", "version": 1, "sampling_rate": 0.5, "steps": 2, '
            '"l2": 1000.0, "l1": 30000.0, "variance": 1000000.0, "beta": 9.094947017729282e-13}'
        ),
    ),
    (
        SharedSkellamSteps(
            sampling_rate=0.5,
            steps=2,
            l2=1000.0,
            l1=30000.0,
            variance=1e6,
            beta=2.0**-40,
            shares=4,
            colluders=1,
        ),
        (
            '{"mechanism": "poisson_subsampled_skellam", "version": 2, "sampling_rate": 0.5, "steps": 2, '
            '"l2": 1000.0, "l1": 30000.0, "variance": 1000000.0, "beta": 9.094947017729282e-13, "shares": 4, '
            '"colluders": 1}'
        ),
    ),
    (NoNoise(steps=3), '{"mechanism": "no_noise", "version": 1, "steps": 3}'),
]


def event(rate: float, noise: float, steps: int) -> GaussianSteps:
    return GaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def test_every_kind_is_covered() -> None:
    assert {type(event) for event, _ in WRITTEN} == set(EVENTS)
    written = {(event.NAME, event.version) for event, _ in WRITTEN}
    known = [(kind.NAME, version) for kind in EVENTS for version in kind.VERSIONS]
    assert written == set(known)
    assert len(known) == len(set(known))


@pytest.mark.parametrize(("release", "text"), WRITTEN)
def test_json_never_changes(release: Event, text: str) -> None:
    assert release.to_json() == text
    assert Event.from_json(text) == type(release).from_json(text) == release
    for kind in set(EVENTS) - set(type(release).__mro__):
        with pytest.raises(InputError, match="must be one of"):
            kind.from_json(text)


@pytest.mark.parametrize(("release", "text"), WRITTEN)
def test_json_is_read_strictly(release: Event, text: str) -> None:
    good = json.loads(text)
    for change in (
        {"version": 3 - release.version},
        {"version": 3},
        {"version": True},
        {"mechanism": "laplace"},
        {"more": 1},
    ):
        with pytest.raises(InputError, match=r"^event="):
            Event.from_json(json.dumps(good | change))
    for name in good:
        with pytest.raises(InputError, match=r"^event="):
            Event.from_json(json.dumps({k: v for k, v in good.items() if k != name}))


@pytest.mark.parametrize(("release", "text"), WRITTEN)
def test_every_field_is_checked(release: Event, text: str) -> None:
    values = {field.name: getattr(release, field.name) for field in fields(release)}
    for name in values:
        for wrong in (0, -1, math.nan, math.inf, "1", True, None):
            if (name, wrong) in (("dimension", None), ("colluders", 0)) and wrong is not True:
                continue
            with pytest.raises(InputError, match=rf"^{name}="):
                type(release)(**(values | {name: wrong}))


@pytest.mark.parametrize(("release", "text"), WRITTEN)
def test_times_and_step(release: Event, text: str) -> None:
    assert release.times(3).steps == 3 * release.steps
    assert release.times(1) == release
    assert release.step.times(release.steps) == release
    for n in (0, MAX_STEPS, -1, 1.0, True):
        with pytest.raises(InputError):
            release.times(n)  # type: ignore[arg-type]


def test_adjacency_belongs_to_the_mechanism() -> None:
    assert {kind.__name__ for kind in EVENTS if kind.adjacency != ADD_REMOVE} == {"FixedSizeGaussianSteps"}
    assert FixedSizeGaussianSteps.adjacency == REPLACE_ONE


def test_bounds_between_fields() -> None:
    with pytest.raises(InputError, match=r"^batch_size=11: must be at most examples=10"):
        FixedSizeGaussianSteps(examples=10, batch_size=11, noise_multiplier=1.0, steps=1)
    with pytest.raises(InputError, match=r"^l1="):
        SkellamSteps(sampling_rate=0.5, steps=2, l2=10.0, l1=9.0, variance=1e6, beta=2.0**-40)
    with pytest.raises(InputError, match=r"^l2="):
        SkellamSteps(sampling_rate=0.5, steps=2, l2=0.9, l1=9.0, variance=1e6, beta=2.0**-40)


def test_only_registered_events_are_releases() -> None:
    class Free(GaussianSteps):
        pass

    for value in (None, "event", {"steps": 1}, Free(sampling_rate=0.1, noise_multiplier=1.0, steps=1)):
        with pytest.raises(InputError, match=r"^event="):
            check_event(value)


def test_event_is_data() -> None:
    steps = event(0.01, 1.1, 5)
    assert json.loads(steps.to_json()) == {
        "mechanism": "poisson_subsampled_gaussian",
        "version": 1,
        "sampling_rate": 0.01,
        "noise_multiplier": 1.1,
        "steps": 5,
    }
    assert GaussianSteps.from_json(steps.to_json()) == steps
    converted = GaussianSteps(
        sampling_rate=np.float32(0.25), noise_multiplier=np.float64(2), steps=np.int64(3)  # type: ignore[arg-type]
    )  # fmt: skip
    assert GaussianSteps.from_json(converted.to_json()) == converted == event(0.25, 2.0, 3)
    with pytest.raises(FrozenInstanceError):
        steps.steps = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        GaussianSteps(0.1, 1.0, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"mechanism": "skellam"},
        {"steps": 0},
        {"steps": 1.5},
        {"sampling_rate": None},
        {"more": 1},
    ],
)
def test_other_events_are_not_understood(change: dict[str, object]) -> None:
    fields = json.loads(event(0.1, 1.0, 1).to_json()) | change
    with pytest.raises(InputError):
        GaussianSteps.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"steps": 1}', "{"])
def test_broken_events_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="event="):
        GaussianSteps.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field in ("sampling_rate", "noise_multiplier")
     for value in (0.0, -1.0, math.nan, math.inf, "1", True, None)]
    + [("sampling_rate", 1.0001)] + [("steps", value) for value in (0, -1, 1.0, True, "1", MAX_STEPS + 1)],
)  # fmt: skip
def test_settings_are_checked(field: str, value: object) -> None:
    settings: dict[str, object] = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1} | {field: value}
    with pytest.raises(InputError, match=field):
        GaussianSteps(**settings)  # type: ignore[arg-type]
