"""Shamir's t-out-of-n secret sharing of 32-byte secrets (Bonawitz et al., CCS 2017, Sec. 3.1).

The secret is the value at 0 of a random polynomial of degree t - 1 over the field of PRIME elements;
share x is its value at x, x = 1 ... n. PRIME is the smallest prime above 2^256, so that every 32-byte
string, an X25519 private key included, is a field element. Any t shares determine the secret; t - 1
shares reveal nothing about it.

    shares = split(secret, threshold=3, parties=4)       # [33 bytes] for x = 1, 2, 3, 4
    combine({1: shares[0], 2: shares[1], 4: shares[3]})  # secret
"""

import secrets
from collections.abc import Mapping
from functools import lru_cache

from ...errors import ProtocolError

PRIME = 2**256 + 297
SECRET_SIZE = 32
SHARE_SIZE = 33
_PRIME_BYTES = PRIME.to_bytes(SHARE_SIZE, "big")


def split(secret: bytes, threshold: int, parties: int) -> list[bytes]:
    """Shares for x = 1 ... parties, of which any `threshold` restore the 32-byte `secret`."""
    if len(secret) != SECRET_SIZE or not 1 <= threshold <= parties < PRIME:
        raise ProtocolError("bad_session", f"cannot share {len(secret)} bytes {threshold} of {parties}")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))  # highest power first, as Horner's rule reads them
    return [_evaluate(coefficients, x).to_bytes(SHARE_SIZE, "big") for x in range(1, parties + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind exactly `threshold` shares, by x. ProtocolError("bad_share") for shares that give none."""
    weights = _weights_at_zero(tuple(sorted(shares)))
    for share in shares.values():
        check_share(share)
    value = sum(int.from_bytes(shares[x], "big") * weight for x, weight in weights) % PRIME
    if value.bit_length() > 8 * SECRET_SIZE:
        raise ProtocolError("bad_share", "the shares do not combine to a secret")
    return value.to_bytes(SECRET_SIZE, "big")


def check_share(share: bytes) -> None:
    # Big-endian bytes of equal length compare like their numbers.
    if len(share) != SHARE_SIZE or share >= _PRIME_BYTES:
        raise ProtocolError("bad_share", f"a share is {SHARE_SIZE} bytes below the field's prime")


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


# Cached: a sum is opened with the same companies' shares for every secret, and the weights take longest.
@lru_cache(maxsize=32)
def _weights_at_zero(xs: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    weights = []
    for x in xs:
        above, below = 1, 1
        for other in xs:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights.append((x, above * pow(below, -1, PRIME) % PRIME))
    return tuple(weights)
