"""The masks that hide a vector; they cancel in the sum or are removed from it.

Bonawitz et al. (CCS 2017), Sec. 4 (masking, double masking) and Sec. 3.4 (the PRG, here AES-256-CTR).
Company u uploads, mod 2^bits,

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv)

The pairwise masks cancel in a sum over all companies; the self mask PRG(b_u) keeps y_u hidden even if y_u arrives
after the coordinator was given the key from which every s_uv is derived.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from ...errors import ProtocolError
from . import packing, pairs
from .keys import agree, derive
from .session import Session

# A block's values and its keystream fit into the second-level cache together.
_ZEROS = memoryview(bytes(4 * packing.BLOCK))


def check_vector(session: Session, vector: NDArray[np.uint32]) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype != np.uint32 or vector.shape != (session.length,):
        raise ProtocolError("bad_vector", f"expected {session.length} values of uint32 in one dimension")
    if session.bits < 32 and int(vector.max()) > session.largest:
        raise ProtocolError("bad_vector", f"a value does not fit {session.bits} bits")


def self_mask_key(seed: bytes, digest: bytes, company: str) -> bytes:
    return derive(seed, digest, "self mask", company.encode())


def seed_commitment(seed: bytes, digest: bytes, company: str) -> bytes:
    """Published in the advert; with it the coordinator notices a wrong seed, which would open a wrong sum.

    Derived by the same HKDF as the mask for another purpose, so it reveals nothing about the mask.
    """
    return derive(seed, digest, "seed commitment", company.encode())


def pair_mask_key(
    private: X25519PrivateKey, digest: bytes, own: tuple[str, bytes], peer: tuple[str, bytes]
) -> tuple[bytes, bool]:
    """The key both companies of a pair derive, and whether the owner of `private` adds the mask.

    `own` and `peer` are (name, mask public key). Of the two, the one whose name sorts first adds.
    """
    first, second = sorted((own, peer))
    ends = first[0].encode(), first[1], second[0].encode(), second[1]
    key = pairs.once(
        (b"pair mask", digest, *ends),
        lambda: derive(agree(private, peer[1]), digest, "pair mask", *ends),
    )
    return key, own == first


def apply_masks(
    vector: NDArray[np.uint32], add: Sequence[bytes], subtract: Sequence[bytes], largest: int
) -> NDArray[np.uint32]:
    """A new vector (d,): `vector` plus and minus the keystreams of the keys, mod largest + 1."""
    result = np.empty(len(vector), dtype=np.uint32)  # (d,)
    streams = _Streams(add, subtract)
    for start in range(0, len(result), packing.BLOCK):
        part = slice(start, start + packing.BLOCK)
        streams.apply(vector[part], result[part])
    result &= np.uint32(largest)
    return result


def masked_and_packed(
    vector: NDArray[np.uint32], add: Sequence[bytes], subtract: Sequence[bytes], bits: int
) -> NDArray[np.uint8]:
    """As `apply_masks`, mod 2^bits, and packed for the wire block by block while a block is in the cache."""
    packed = np.empty(packing.packed_size(len(vector), bits), dtype=np.uint8)
    block = np.empty(min(len(vector), packing.BLOCK), dtype=np.uint32)
    streams, largest = _Streams(add, subtract), np.uint32((1 << bits) - 1)
    for start, stop, part in packing.blocks(packed, len(vector), bits):
        values = block[: stop - start]
        streams.apply(vector[start:stop], values)
        values &= largest
        packing.pack_block(values, part, bits)
    return packed


class _Streams:
    """The keystreams of all masks of a vector, applied block by block from its start.

    uint32 arithmetic wraps mod 2^32, which 2^bits divides, so one reduction at the end is exact.
    """

    def __init__(self, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
        self._add = [_keystream(key).update_into for key in add]
        self._subtract = [_keystream(key).update_into for key in subtract]
        self._buffer = np.empty(packing.BLOCK, dtype="<u4")

    def apply(self, values: NDArray[np.uint32], into: NDArray[np.uint32]) -> None:
        mask = self._buffer[: len(values)]
        zeros, octets = _ZEROS[: mask.nbytes], mask.view(np.uint8).data
        into[:] = values
        for update_into in self._add:
            update_into(zeros, octets)
            np.add(into, mask, out=into)
        for update_into in self._subtract:
            update_into(zeros, octets)
            np.subtract(into, mask, out=into)


def _keystream(key: bytes) -> CipherContext:
    # Each key encrypts one stream only, so the counter may start at zero.
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
