"""Noise and sampling bits from a keyed AES-256-CTR stream.

Purpose: differential privacy holds only against adversaries who cannot predict the noise, so noise comes from a
cryptographic generator and not from a Mersenne Twister or PCG. The stream is AES-256 in counter mode (NIST
SP 800-38A, section 6.5) from counter 0 under a key used for nothing else; seeded keys come from HKDF-SHA256
(RFC 5869, section 2).

Normal samples are Box and Muller's (1958) in float64, from 64 bits of angle and a radius of at least 47
significant bits at any size: a uniform below 2^-16 is drawn again from other words. `mechanisms.gaussian` and
`rounding` deal with what floats may reveal about the values they were added to (Mironov 2012).

A key gives the same bytes, words, coins and integers on every machine; normals agree as far as the machines'
log, sqrt, sin and cos do, which is all but the last two bits.
"""

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from ..errors import InputError, PrivacyError

KEY_BYTES = 32
_SALT = b"fedblocks/randomness/v1"
# Words at a time, an even number: what is computed from them stays in the second-level cache, and is smaller than
# the tensors whose work torch would split among threads.
_CHUNK = 1 << 15
_ZEROS = memoryview(bytes(8 * _CHUNK))
# Uniforms below this are drawn again, on (0, 2^-16): with 63 bits alone large radii would be too coarse.
_RARE = 2.0**-16
# The counter from which their words are drawn: too far from 0 for the main stream ever to reach it.
_FAR = bytes([128]) + bytes(15)
_MAX = (1 << 63) - 1
# The class has a method named `bytes`.
Bytes = bytes


class Randomness:
    """A deterministic-per-key source of bytes, words, uniforms, normals, coin flips and integers.

    Every float takes 8 stream bytes, in order, so `uniform(a)` followed by `uniform(b)` equals `uniform(a + b)`.
    Normals come in pairs: the same holds for `normal` if a is even, and an odd one's partner is dropped.

        rng = Randomness.from_entropy()                      # what deployments use
        noise = sigma * rng.normal(gradient.size)            # (size,) float64
        joins = rng.bernoulli(len(dataset), sampling_rate)   # (len,) bool: a Poisson batch
    """

    def __init__(self, key: bytes) -> None:
        """Generators with equal keys give equal streams: equal noise in two releases cancels in their difference."""
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            # The value stays out of the message: it may be a key of the wrong length.
            raise InputError("key", "<redacted>", f"must be {KEY_BYTES} bytes")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._far = Cipher(algorithms.AES(key), modes.CTR(_FAR)).encryptor()
        self._process = os.getpid()

    @classmethod
    def from_entropy(cls) -> "Randomness":
        """A fresh key from the operating system: what deployments use."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: int, *labels: str | int) -> "Randomness":
        """A reproducible stream, for simulations and tests only.

        Anyone who knows the seed can compute the noise and subtract it: a release made with a seeded stream
        has no privacy against them. Labels tell streams of one seed apart ("company", 3, "round", 7).
        """
        secret = HKDF(
            algorithm=SHA256(),
            length=KEY_BYTES,
            salt=_SALT,
            info=b"".join(_encoded("labels", label, (str, int, np.integer)) for label in labels),
        )
        return cls(secret.derive(_encoded("seed", seed, (int, np.integer))))

    def bytes(self, n: int) -> Bytes:
        """The next n bytes of the stream."""
        out = bytearray(_count("n", n))
        self._into(memoryview(out))
        return Bytes(out)

    def words(self, n: int) -> NDArray[np.uint64]:
        """(n,) words of 64 stream bits each, little-endian."""
        out = np.empty(_count("n", n), dtype="<u8")
        self._into(out.view(np.uint8).data)
        return out.astype(np.uint64, copy=False)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """(n,) uniforms in the open interval (0, 1): the odd multiples of 2^-53, equally likely."""
        out = np.empty(_count("n", n), dtype=np.float64)
        for start in range(0, len(out), _CHUNK):
            part = out[start : start + _CHUNK]
            # 52 bits and a last bit of 1: never 0 or 1, symmetric about 1/2, each value exact in a float64.
            odd = (self.words(part.size) >> np.uint64(11)) | np.uint64(1)
            np.multiply(odd.view(np.int64), 2.0**-53, out=part)
        return out

    def normal(self, n: int) -> NDArray[np.float64]:
        """(n,) standard normals.

        x, y = sqrt(-2 ln u) (cos v, sin v), with u uniform in (0, 1) and v in [-pi, pi). Neighbouring values of u
        are at most 2^-47 u apart, and the angles nowhere more than 2^-52.
        """
        n = _count("n", n)
        out = torch.empty(n + n % 2, dtype=torch.float64)
        buffers = torch.empty(3, min(len(out), _CHUNK) // 2, dtype=torch.float64)
        for start in range(0, len(out), _CHUNK):
            pairs = out[start : start + _CHUNK].view(-1, 2)
            words = torch.from_numpy(self.words(pairs.numel()).view(np.int64)).view(-1, 2)  # as `pairs`
            radius, angle, projection = buffers[:, : len(pairs)]  # (pairs,) each
            radius.copy_(words[:, 0] & _MAX).mul_(2.0**-63)
            if float(radius.min()) < _RARE:
                for pair in torch.nonzero(radius < _RARE)[:, 0].tolist():
                    radius[pair] = self._rare()
            radius.log_().mul_(-2).sqrt_()
            angle.copy_(words[:, 1]).mul_(math.pi * 2.0**-63)
            torch.mul(radius, torch.cos(angle, out=projection), out=pairs[:, 0])
            torch.mul(radius, angle.sin_(), out=pairs[:, 1])
        return out[:n].numpy()

    def _rare(self) -> float:
        """A uniform in (0, 2^-16), with at least 47 significant bits."""
        u = (int.from_bytes(self._far.update(bytes(8)), "little") >> 1) * 2.0**-63
        return _RARE * (u if u >= _RARE else self._rare())

    def bernoulli(self, n: int, q: float) -> NDArray[np.bool_]:
        """(n,) independent coins, each True with probability q (exact to 2^-53)."""
        if not 0 <= q <= 1:
            raise InputError("q", q, "must be a probability in [0, 1]")
        return self.uniform(n) < q

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """(n,) integers, exactly uniform on {0, ..., high - 1}; 1 <= high <= 2^63."""
        if isinstance(high, bool) or not isinstance(high, (int, np.integer)) or not 1 <= high <= 1 << 63:
            raise InputError("high", high, "must be an integer from 1 to 2^63")
        bound, n = int(high), _count("n", n)
        # Words past the last whole multiple of `high` would make small integers likelier: draw those again.
        last = (1 << 64) // bound * bound - 1
        words = self.words(n)
        while (over := np.flatnonzero(words > np.uint64(last))).size:
            words[over] = self.words(over.size)
        return (words % np.uint64(bound)).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """(n,) the integers 0 .. n - 1 in random order, every order equally likely but for n^2 / 2^64."""
        return np.argsort(self.words(n), kind="stable").astype(np.int64)

    def _into(self, buffer: memoryview) -> None:
        """The next bytes of the stream into all of `buffer`."""
        if os.getpid() != self._process:
            # A fork copies the stream: parent and child would add the same noise to two releases.
            raise PrivacyError("a Randomness was carried into another process; make a new one there")
        for start in range(0, len(buffer), len(_ZEROS)):
            part = buffer[start : start + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: len(part)], part)

    def __repr__(self) -> str:
        return "Randomness(<redacted>)"


def _count(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(field, value, "must be an integer of at least 0")
    return int(value)


def _encoded(field: str, value: object, kinds: tuple[type, ...]) -> Bytes:
    """Type, length, content: no two lists of labels share an encoding."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds if kind is not np.integer)
        raise InputError(field, value, f"must be of type {names}")
    tag, content = (b"s", value) if isinstance(value, str) else (b"i", str(value))
    encoded = content.encode()
    return tag + len(encoded).to_bytes(8, "big") + encoded
