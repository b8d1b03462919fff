"""The keyed stream is AES-CTR, its samples follow their laws, and streams do not repeat by accident."""

import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy import stats

from fedblocks.errors import InputError, PrivacyError
from fedblocks.privacy.randomness import Randomness


def test_bytes_are_the_aes_256_ctr_keystream() -> None:
    key = bytes(range(32))
    oracle = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(1000))
    rng = Randomness(key)
    assert rng.bytes(7) + rng.bytes(0) + rng.bytes(993) == oracle


def test_seeded_key_is_hkdf_sha256_of_seed_and_labels() -> None:
    info = b"s" + (1).to_bytes(8, "big") + b"a" + b"i" + (2).to_bytes(8, "big") + b"-7"
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=b"fedblocks/randomness/v1", info=info)
    key = hkdf.derive(b"i" + (2).to_bytes(8, "big") + b"42")
    assert Randomness.from_seed(42, "a", -7).bytes(64) == Randomness(key).bytes(64)


def test_same_labels_same_stream_other_labels_other_stream() -> None:
    assert Randomness.from_seed(1, "x", 2).bytes(32) == Randomness.from_seed(1, "x", 2).bytes(32)
    labels: list[tuple[str | int, ...]] = [
        (), ("",), ("", ""), ("a", "bc"), ("ab", "c"), ("abc",), ("1",), (1,), (11,), (1, 1), (-1,), ("é",),
    ]  # fmt: skip
    streams = {Randomness.from_seed(0, *label).bytes(32) for label in labels}
    streams |= {Randomness.from_seed(seed).bytes(32) for seed in (1, -1, 2**200)}
    streams |= {Randomness.from_entropy().bytes(32) for _ in range(2)}
    assert len(streams) == len(labels) + 5


def test_differently_labelled_normals_are_independent() -> None:
    n = 200_000
    a, b = (Randomness.from_seed(0, "company", k).normal(n) for k in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 4 / np.sqrt(n)


def test_normal_follows_the_exact_normal_law() -> None:
    n = 1_000_000
    x = Randomness.from_seed(3, "normal").normal(n)
    assert x.dtype == np.float64
    assert x.shape == (n,)
    assert np.isfinite(x).all()
    assert stats.kstest(x[:200_000], "norm").pvalue > 1e-3
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for tail in (3.0, 4.0):
        expected = n * stats.norm.sf(tail)
        for count in ((x > tail).sum(), (x < -tail).sum()):
            assert abs(count - expected) < 4.5 * np.sqrt(expected)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / np.sqrt(n)


def test_far_tails_have_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii that occur once in 2^16 pairs, and once in 2^32: would catch a mistake in what is drawn again, or gaps.

    Given -2 ln u of a radius beyond 2 * 16 ln 2, what exceeds that is exponential with mean 2 (no memory).
    """
    rng, n = Randomness.from_seed(9), 40_000
    words = Randomness.from_seed(10).words

    def small_radii(count: int) -> np.ndarray:
        drawn = words(count)
        drawn[0::2] >>= np.uint64(17)  # below 2^47 of 2^63
        return drawn

    monkeypatch.setattr(rng, "words", small_radii)
    x = rng.normal(n)
    squared = x[0::2] ** 2 + x[1::2] ** 2
    assert len(np.unique(squared)) > 0.999 * len(squared)
    assert stats.kstest(squared - 32 * np.log(2), "expon", args=(0, 2)).pvalue > 1e-3
    draws = iter(Randomness.from_seed(11).bytes(16 * n))

    class Small:
        """Words below 2^-16 in every other draw, so that all are drawn twice."""

        odd = False

        def update(self, zeros: bytes) -> bytes:
            self.odd = not self.odd
            drawn = bytes(next(draws) for _ in range(6 if self.odd else 8))
            return drawn[:-1] + bytes([drawn[-1] & 127, 0, 0]) if self.odd else drawn

    rng._far = Small()  # type: ignore[assignment]
    x = rng.normal(4000)
    squared = x[0::2] ** 2 + x[1::2] ** 2
    assert stats.kstest(squared - 64 * np.log(2), "expon", args=(0, 2)).pvalue > 1e-3


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs extended precision as the oracle")
def test_normals_are_accurate_to_what_the_gaussian_mechanism_counts_on() -> None:
    n, extended = 400_000, np.longdouble
    x = Randomness.from_seed(3).normal(n).reshape(-1, 2)
    words = Randomness.from_seed(3).words(n).reshape(-1, 2)
    uniform = (words[:, 0] & np.uint64(2**63 - 1)).astype(extended) / extended(2) ** 63
    x, words, uniform = (each[uniform >= 2.0**-16] for each in (x, words, uniform))
    radius = np.sqrt(-2 * np.log(uniform))
    pi = extended("3.14159265358979323846264338327950288")
    angle = words[:, 1].view(np.int64).astype(extended) * (pi / extended(2) ** 63)
    error = np.abs(x - radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert np.sqrt((error**2).mean()) < 2.0**-51
    assert (error / radius[:, None])[radius > 1].max() < 2.0**-50
    # What `rounding` counts on at every single value.
    near = np.abs(x) / radius[:, None] ** 2
    assert (error <= (5 * np.abs(x) + 8 * np.abs(x[:, ::-1]) + near) * 2.0**-53).all()


def test_pairs_are_independent() -> None:
    """Both of a pair come from one radius: signs, squares and quadrants must not show it."""
    x = Randomness.from_seed(8).normal(400_000).reshape(-1, 2)
    bins = stats.norm.ppf(np.linspace(0, 1, 11))
    table = np.histogram2d(x[:, 0], x[:, 1], bins=(bins, bins))[0]  # (10, 10), all cells equally likely
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    following = np.histogram2d(x[:-1, 1], x[1:, 0], bins=(bins, bins))[0]
    assert stats.chisquare(following.ravel()).pvalue > 1e-3
    assert stats.kstest((x**2).sum(axis=1), "chi2", args=(2,)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("radius", "angle", "low", "high"),
    [
        (0, 0, 4.7, 10),  # drawn again
        (0, 1 << 63, -10, -4.7),
        ((1 << 64) - 1, 0, 0, 0),
        ((1 << 63) - 1, 0, 0, 0),
        (1, 2047, 4.7, 10),
    ],
)
def test_extreme_words_give_finite_normals(
    monkeypatch: pytest.MonkeyPatch, radius: int, angle: int, low: float, high: float
) -> None:
    rng = Randomness.from_seed(0)
    monkeypatch.setattr(rng, "words", lambda n: np.tile(np.array([radius, angle], dtype=np.uint64), n // 2))
    x = rng.normal(2)
    assert np.isfinite(x).all()
    assert low <= x[0] <= high
    assert abs(x[1]) < 1e-12


@pytest.mark.parametrize("word", [0, (1 << 64) - 1])
def test_uniforms_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    rng = Randomness.from_seed(0)
    monkeypatch.setattr(rng, "words", lambda n: np.full(n, word, dtype=np.uint64))
    (u,) = rng.uniform(1)
    assert 0 < u < 1


def test_uniform_law_and_open_interval() -> None:
    u = Randomness.from_seed(4).uniform(200_000)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_draws_continue_across_calls_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a law that depends on where a value stands in a vector instruction or a chunk."""
    wholes = [getattr(Randomness.from_seed(5), kind)(5000) for kind in ("normal", "uniform", "words")]
    monkeypatch.setattr("fedblocks.privacy.randomness._CHUNK", 64)
    monkeypatch.setattr("fedblocks.privacy.randomness._ZEROS", memoryview(bytes(24)))
    for kind, whole in zip(("normal", "uniform", "words"), wholes, strict=True):
        draw = getattr(Randomness.from_seed(5), kind)
        np.testing.assert_array_equal(np.concatenate([draw(2), draw(4000), draw(998)]), whole)
    odd = Randomness.from_seed(5)
    np.testing.assert_array_equal(odd.normal(3), wholes[0][:3])
    np.testing.assert_array_equal(odd.normal(4), wholes[0][4:8])  # the fourth was dropped


@pytest.mark.parametrize("q", [0.0, 0.001, 0.3, 1.0])
def test_bernoulli_rate(q: float) -> None:
    n = 500_000
    coins = Randomness.from_seed(6, "coins").bernoulli(n, q)
    assert coins.dtype == np.bool_
    assert abs(coins.sum() - n * q) <= 4 * np.sqrt(n * q * (1 - q))


@pytest.mark.parametrize("high", [1, 2, 7, 1000, 3 << 61, 1 << 63])
def test_integers_are_uniform(high: int) -> None:
    n = 100_000
    x = Randomness.from_seed(7, high).integers(high, n)
    assert x.dtype == np.int64
    assert x.min() >= 0
    assert int(x.max()) < high
    if high <= 1000:
        assert stats.chisquare(np.bincount(x, minlength=high)).pvalue > 1e-3 or high == 1
    else:
        # 3 * 2^61 does not divide 2^64: without rejection the lowest third would be met half as often again.
        assert stats.kstest(x / float(high), "uniform").pvalue > 1e-3


def test_repr_and_errors_keep_the_key() -> None:
    rng = Randomness(b"k" * 32)
    assert repr(rng) == "Randomness(<redacted>)"
    assert b"k" * 32 not in [getattr(rng, name) for name in vars(rng)]
    with pytest.raises(InputError, match="32 bytes") as caught:
        Randomness(b"secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(TypeError):
        pickle.dumps(rng)


@pytest.mark.parametrize("n", [-1, 1.5, True, "3", None])
def test_counts_are_checked(n: object) -> None:
    rng = Randomness.from_seed(0)
    for draw in (rng.bytes, rng.words, rng.uniform, rng.normal):
        with pytest.raises(InputError, match="n="):
            draw(n)  # type: ignore[operator]


def test_other_inputs_are_checked() -> None:
    rng = Randomness.from_seed(0)
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="q="):
            rng.bernoulli(3, q)
    for high in (0, -1, (1 << 63) + 1, True):
        with pytest.raises(InputError, match="high="):
            rng.integers(high, 3)
    for seed in ("1", True, 1.0):
        with pytest.raises(InputError, match="seed="):
            Randomness.from_seed(seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels="):
        Randomness.from_seed(1, 2.0)  # type: ignore[arg-type]


def test_a_stream_is_not_carried_into_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Randomness.from_entropy()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(PrivacyError, match="another process"):
        rng.normal(1)
