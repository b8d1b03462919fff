"""Masked vectors on the wire: residues mod 2^bits in `bits` bits each, rather than in 32.

Not part of the paper, which counts bits and leaves the packing open. A vector is cut into blocks of BLOCK values, the
last one shorter. With g = gcd(bits, 32), `lanes` = 32 / g values fill exactly `words` = bits / g words of
32 bits. A block of r values has m = ceil(r / lanes) columns and is padded with zeros:
value i of the block stands in lane i div m, column i mod m. The `lanes` values of a column, lane 0 in the lowest
bits, are a number of 32 * words bits; its 32-bit word w, lowest first, is stored at index w * m + column,
little-endian. So every step runs over neighbouring values, and 22 bits take 2.75 bytes a value.

    packed = pack(residues, 22)                 # (d,) uint32 -> (packed_size(d, 22),) uint8
    residues = unpack(packed, len(residues), 22)
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...errors import ProtocolError

# A block of values and its packed form stay in the second-level cache together.
BLOCK = 1 << 16


def packed_size(length: int, bits: int) -> int:
    """Bytes that `length` values of `bits` bits take."""
    lanes, words = _layout(bits)
    whole, rest = divmod(length, BLOCK)
    return 4 * words * (whole * (BLOCK // lanes) + -(-rest // lanes))


def pack(residues: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """`residues` (d,) uint32 below 2^bits -> (packed_size(d, bits),) uint8."""
    packed = np.empty(packed_size(len(residues), bits), dtype=np.uint8)
    for start, stop, part in blocks(packed, len(residues), bits):
        pack_block(residues[start:stop], part, bits)
    return packed


def unpack(packed: NDArray[np.uint8], length: int, bits: int) -> NDArray[np.uint32]:
    """The `length` values of a packed vector, (length,) uint32. Checks the size before it allocates."""
    check_packed(packed, length, bits)
    residues = np.empty(length, dtype=np.uint32)
    check_padding(packed, length, bits)
    buffer = buffer_for(length)
    for start, stop, part in blocks(packed, length, bits):
        residues[start:stop] = unpack_block(part, stop - start, bits, buffer)
    return residues


def check_packed(packed: NDArray[np.uint8], length: int, bits: int) -> None:
    size = packed_size(length, bits)
    fits = isinstance(packed, np.ndarray) and packed.dtype == np.uint8 and packed.shape == (size,)
    if not fits or not packed.flags.c_contiguous:
        raise ProtocolError("bad_vector", f"{length} values of {bits} bits are {size} bytes of uint8")


def blocks(packed: NDArray[np.uint8], length: int, bits: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """(first value, end, packed bytes) of each block."""
    lanes, words = _layout(bits)
    at = 0
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        size = 4 * words * -(-(stop - start) // lanes)
        yield start, stop, packed[at : at + size]
        at += size


def pack_block(values: NDArray[np.uint32], packed: NDArray[np.uint8], bits: int) -> None:
    """Pack one block's `values` into its bytes."""
    lanes, words = _layout(bits)
    columns = len(packed) // (4 * words)
    if lanes * columns != len(values):
        values = np.concatenate([values, np.zeros(lanes * columns - len(values), dtype=np.uint32)])
    grid = values.reshape(lanes, columns)  # (lanes, columns)
    out = packed.view("<u4").reshape(words, columns)  # (words, columns)
    shifted = np.empty(columns, dtype=np.uint32)
    for lane in range(lanes):
        word, shift = divmod(lane * bits, 32)
        if shift == 0:
            out[word] = grid[lane]
        else:
            np.left_shift(grid[lane], np.uint32(shift), out=shifted)
            out[word] |= shifted
        if shift + bits > 32:
            np.right_shift(grid[lane], np.uint32(32 - shift), out=out[word + 1])


def buffer_for(length: int) -> NDArray[np.uint32]:
    """Room for one unpacked block, for `unpack_block`."""
    return np.empty(min(length, BLOCK) + 31, dtype=np.uint32)


def unpack_block(
    packed: NDArray[np.uint8], count: int, bits: int, buffer: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """The `count` values of one block (count,) uint32, in the front of `buffer`."""
    lanes, words = _layout(bits)
    columns = len(packed) // (4 * words)
    into = packed.view("<u4").reshape(words, columns)  # (words, columns)
    grid = buffer[: lanes * columns].reshape(lanes, columns)  # (lanes, columns)
    shifted = np.empty(columns, dtype=np.uint32)
    largest = np.uint32((1 << bits) - 1)
    for lane in range(lanes):
        word, shift = divmod(lane * bits, 32)
        np.right_shift(into[word], np.uint32(shift), out=grid[lane])
        if shift + bits > 32:
            np.left_shift(into[word + 1], np.uint32(32 - shift), out=shifted)
            grid[lane] |= shifted
        grid[lane] &= largest
    return buffer[:count]


def check_padding(packed: NDArray[np.uint8], length: int, bits: int) -> None:
    """Refuse padding that is not zero: what was accepted has one encoding."""
    lanes, words = _layout(bits)
    rest = length % BLOCK
    if rest % lanes:
        size = 4 * words * -(-rest // lanes)
        padded = np.empty(rest + lanes, dtype=np.uint32)
        unpack_block(packed[-size:], rest, bits, padded)
        if padded[rest : lanes * (size // (4 * words))].any():
            raise ProtocolError("bad_vector", "the padding of a packed vector is not zero")


def _layout(bits: int) -> tuple[int, int]:
    common = math.gcd(bits, 32)
    return 32 // common, bits // common
