"""Fixed-point residues: no sum wraps, errors stay within what is stated, the bound is enforced."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.quantisation import FixedPoint
from fedblocks.protocol.release import codec, default_company_clip
from fedblocks.settings import Plan, SimulationSettings

BOUNDS = st.floats(1e-6, 1e6)
SEEDS = st.integers(0, 2**32 - 1)
IMPOSSIBLE = [(0, 32), (3, 33), (3, 1), (128, 8)]  # parties, bits


def fits(codec: FixedPoint, scale: float) -> bool:
    used = codec.parties * (Fraction(codec.bound) * Fraction(scale) + 1)
    return bool(used < 2 ** (codec.bits - 1))


@given(bound=st.floats(1e-200, 1e200), parties=st.integers(1, 1000), bits=st.integers(12, 32))
def test_scale_is_the_largest_that_leaves_room_for_every_party(bound: float, parties: int, bits: int) -> None:
    codec = FixedPoint(bound=bound, parties=parties, bits=bits)
    assert fits(codec, codec.scale)
    assert not fits(codec, math.nextafter(codec.scale, math.inf))


@settings(max_examples=200)
@given(bound=BOUNDS, parties=st.integers(1, 12), bits=st.integers(8, 32), size=st.integers(0, 40), seed=SEEDS)
def test_sum_is_exact_but_for_the_stated_rounding(
    bound: float, parties: int, bits: int, size: int, seed: int
) -> None:
    codec = FixedPoint(bound=bound, parties=parties, bits=bits)
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((parties, size))  # (parties, size)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (parties, 1)
    vectors *= bound * draw.uniform(0.9, 1.0, (parties, 1)) / np.maximum(norms, 1e-30)
    total = np.zeros(size, dtype=np.uint32)
    for vector in vectors:
        total += codec.encode(vector)
    error = np.abs(codec.decode_sum(total & np.uint32(2**bits - 1)) - vectors.sum(axis=0))
    assert np.all(error <= codec.max_error + parties * 2**-20 / codec.scale)


@example(bound=1.0, parties=1, bits=32, sign=1.0)
@example(bound=1.0, parties=1, bits=32, sign=-1.0)
@given(bound=BOUNDS, parties=st.integers(1, 200), bits=st.integers(10, 32), sign=st.sampled_from([-1.0, 1.0]))
def test_everybody_at_the_bound_in_one_coordinate_does_not_wrap(
    bound: float, parties: int, bits: int, sign: float
) -> None:
    codec = FixedPoint(bound=bound, parties=parties, bits=bits)
    at_bound = codec.encode(np.array([sign * bound * (1 + 0.9e-9)]))
    level = int(at_bound[0]) - (2**bits if sign < 0 else 0)
    assert abs(level) <= Fraction(bound) * Fraction(codec.scale) + 1
    total = np.array([parties * level % 2**bits], dtype=np.uint32)
    loss = codec.max_error + parties * bound * 1e-9
    assert abs(codec.decode_sum(total)[0] - sign * parties * bound) <= loss * (1 + 1e-6)


def test_half_a_level_is_the_error_that_is_reached() -> None:
    codec = FixedPoint(bound=1.0, parties=4, bits=16)
    worst = np.array([(math.floor(0.5 * codec.scale) + 0.499999) / codec.scale])
    error = abs(codec.decode_sum(4 * codec.encode(worst))[0] - 4 * worst[0])
    assert 0.999 * codec.max_error < error <= codec.max_error


@given(data=st.lists(st.integers(0, 2**20 - 1), max_size=30))
def test_decoding_is_centred_twos_complement(data: list[int]) -> None:
    codec = FixedPoint(bound=1.0, parties=3, bits=20)
    decoded = codec.decode_sum(np.array(data, dtype=np.uint32)) * codec.scale
    assert np.allclose(decoded, [r - 2**20 if r >= 2**19 else r for r in data], rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.1, -1.1, 1 + 1e-8, 1e300])
def test_vectors_beyond_the_bound_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError):
        FixedPoint(bound=1.0, parties=3, bits=32).encode(np.array([0.0, bad]))


def test_the_bound_is_on_the_norm_and_not_on_each_coordinate() -> None:
    codec = FixedPoint(bound=1.0, parties=3, bits=32)
    codec.encode(np.full(4, 0.5))
    with pytest.raises(PrivacyError):
        codec.encode(np.full(4, 0.6))


def test_tiny_bounds_do_not_let_the_norm_underflow() -> None:
    with pytest.raises(PrivacyError):
        FixedPoint(bound=1e-200, parties=3, bits=32).encode(np.full(4, 0.9e-200))


def test_the_vector_is_left_as_it_was() -> None:
    vector = np.linspace(-0.1, 0.1, 9)
    FixedPoint(bound=1.0, parties=3, bits=32).encode(vector)
    assert np.array_equal(vector, np.linspace(-0.1, 0.1, 9))


@pytest.mark.parametrize(
    ("bound", "parties", "bits"),
    [(b, 3, 32) for b in (0.0, -1.0, math.nan, math.inf, 5e-324)] + [(1.0, *pair) for pair in IMPOSSIBLE],
)
def test_impossible_settings_are_refused(bound: float, parties: int, bits: int) -> None:
    with pytest.raises(InputError):
        FixedPoint(bound=bound, parties=parties, bits=bits)


def test_wrong_types_and_ranges_are_refused() -> None:
    codec = FixedPoint(bound=1.0, parties=3, bits=16)
    for vector in (np.zeros(3, dtype=np.float32), np.zeros((2, 2)), np.zeros(3, dtype=np.int64)):
        with pytest.raises(InputError):
            codec.encode(vector)  # type: ignore[arg-type]
    for residues in (np.zeros(3, dtype=np.int32), np.zeros((2, 2), dtype=np.uint32)):
        with pytest.raises(InputError):
            codec.decode_sum(residues)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        codec.decode_sum(np.array([2**16], dtype=np.uint32))


@pytest.mark.parametrize("parameters", [10**3, 10**5, 10**6])
@pytest.mark.parametrize("companies", [3, 10, 100])
def test_with_the_default_width_rounding_stays_far_below_the_privacy_noise(
    small: SimulationSettings, parameters: int, companies: int
) -> None:
    """Deviation of one company's rounding against that of its noise, in a coordinate; 3% add 0.1% of variance."""
    plan = Plan(
        run="r", model=small.model, noise=small.noise, training=small.training, delta=1e-5, max_grad_norm=1.0,
        noise_multiplier=1.0, company_clip=1.0, secure_aggregation=small.secure_aggregation,
    )  # fmt: skip
    assert plan.bits == 22
    t = plan.training
    plan = plan.changed(company_clip=default_company_clip(t, plan, plan.noise_multiplier, parameters))
    noise = t.local_learning_rate * math.sqrt(t.local_steps) / t.expected_batch_size
    rounding = 1 / codec(plan, companies).scale / math.sqrt(12)
    assert rounding / noise < 0.03
