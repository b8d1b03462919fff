"""Noise and sampling bits from a keyed AES-256-CTR stream.

Purpose: differential privacy holds only against those who cannot predict the noise, so noise comes from a
cryptographic generator and not from a Mersenne Twister or PCG. The stream is AES-256 in counter mode (NIST
SP 800-38A, section 6.5) from counter 0 under a key used for nothing else; seeded keys come from HKDF-SHA256
(RFC 5869, section 2).

Normal samples are float64 values of the inverse normal CDF. The guarantee is that of the real-valued
Gaussian: the gaps between floats (Mironov 2012) are not accounted for.
"""

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from scipy.special import ndtri

from ..errors import InputError, PrivacyError

KEY_BYTES = 32
_SALT = b"fedblocks/randomness/v1"
# 8 MB of stream at a time: bounds memory for vectors of model size and stays near the cache.
_CHUNK = 1 << 20
# The class has a method of that name.
Bytes = bytes


class Randomness:
    """A deterministic-per-key source of bytes, uniforms, normals, coin flips and integers.

    Every float takes 8 stream bytes, in order, so `normal(a)` followed by `normal(b)` equals `normal(a + b)`.

        rng = Randomness.from_entropy()                      # what deployments use
        noise = sigma * rng.normal(gradient.size)            # (size,) float64
        joins = rng.bernoulli(len(dataset), sampling_rate)   # (len,) bool: a Poisson batch
    """

    def __init__(self, key: bytes) -> None:
        """Two generators with one key give the same stream: noise that is equal twice cancels."""
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            # The value stays out of the message: it may be a key of the wrong length.
            raise InputError("key", "<redacted>", f"must be {KEY_BYTES} bytes")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
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
        return self._next(_count("n", n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """(n,) uniforms in the open interval (0, 1): the odd multiples of 2^-53, equally likely."""
        return self._fill(_count("n", n), normal=False)

    def normal(self, n: int) -> NDArray[np.float64]:
        """(n,) standard normals, |x| < 8.3: what is cut off has probability 2e-16."""
        return self._fill(_count("n", n), normal=True)

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
        words = self._words(n)
        while (over := np.flatnonzero(words > np.uint64(last))).size:
            words[over] = self._words(over.size)
        return (words % np.uint64(bound)).astype(np.int64)

    def _fill(self, n: int, *, normal: bool) -> NDArray[np.float64]:
        out = np.empty(n, dtype=np.float64)
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            # 52 bits and a last bit of 1: never 0 or 1, symmetric about 1/2, each value exact in a float64.
            np.multiply((self._words(part.size) >> np.uint64(11)) | np.uint64(1), 2.0**-53, out=part)
            if normal:
                ndtri(part, out=part)
        return out

    def _words(self, n: int) -> NDArray[np.uint64]:
        return np.frombuffer(bytearray(self._next(8 * n)), dtype="<u8").astype(np.uint64, copy=False)

    def _next(self, n: int) -> Bytes:
        if os.getpid() != self._process:
            # A fork copies the stream: parent and child would add the same noise to two releases.
            raise PrivacyError("a Randomness was carried into another process; make a new one there")
        return self._stream.update(bytes(n))

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
