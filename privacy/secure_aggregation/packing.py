"""Masked vectors on the wire: residues mod 2^bits in `bits` bits each, rather than in 32.

Not part of the paper, which does not specify the packing. A vector is cut into blocks of BLOCK values, the
last one shorter. With g = gcd(bits, 32), `lanes` = 32 / g values fill exactly `words` = bits / g words of
32 bits. A block of r values has m = ceil(r / lanes) columns and is padded with zeros:
value i of the block stands in lane i div m, column i mod m. The `lanes` values of a column, lane 0 in the lowest
bits, are a number of 32 * words bits; its 32-bit word w, lowest first, is stored at index w * m + column,
little-endian. So every step works on contiguous values, and 22 bits take 2.75 bytes a value.

    packed = pack(residues, 22)                 # (d,) uint32 -> (packed_size(d, 22),) uint8
    residues = unpack(packed, len(residues), 22)
    add_packed(total, packed, 22)               # total (d,) uint32, to be read mod 2^22
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...errors import ProtocolError

# A block of values and its packed form fit into the second-level cache together.
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
    """The `length` values of a packed vector, (length,) uint32."""
    check_packed(packed, length, bits)  # before anything is allocated
    residues = np.zeros(length, dtype=np.uint32)
    add_packed(residues, packed, bits)
    residues &= np.uint32((1 << bits) - 1)
    return residues


def check_packed(packed: NDArray[np.uint8], length: int, bits: int) -> None:
    """Refuse another size, and padding that is not zero: what was accepted has one encoding."""
    size = packed_size(length, bits)
    fits = isinstance(packed, np.ndarray) and packed.dtype == np.uint8 and packed.shape == (size,)
    if not fits or not packed.flags.c_contiguous:
        raise ProtocolError("bad_vector", f"{length} values of {bits} bits are {size} bytes of uint8")
    lanes, words = _layout(bits)
    rest = length % BLOCK
    columns = -(-rest // lanes)
    if lanes * columns > rest:
        padded = np.zeros((lanes, columns), dtype=np.uint32)
        _add_block(packed[-4 * words * columns :], padded, bits)
        if (padded.ravel()[rest:] & np.uint32((1 << bits) - 1)).any():
            raise ProtocolError("bad_vector", "the padding of a packed vector is not zero")


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


def add_packed(total: NDArray[np.uint32], packed: NDArray[np.uint8], bits: int) -> None:
    """Add a packed vector to `total` (d,); `total` is not reduced mod 2^bits, its reader must do that.

    Checks size and padding first, so a vector is added as a whole or not at all.

    Raises:
        ProtocolError: "bad_vector".
    """
    check_packed(packed, len(total), bits)
    for start, stop, part in blocks(packed, len(total), bits):
        lanes, words = _layout(bits)
        columns = len(part) // (4 * words)
        if lanes * columns == stop - start:
            _add_block(part, total[start:stop].reshape(lanes, columns), bits)
        else:
            padded = np.zeros((lanes, columns), dtype=np.uint32)
            _add_block(part, padded, bits)
            total[start:stop] += padded.ravel()[: stop - start]


def _add_block(packed: NDArray[np.uint8], grid: NDArray[np.uint32], bits: int) -> None:
    """Add a block's values to `grid` (lanes, columns); the bits above a value get unspecified contents."""
    lanes, columns = grid.shape
    into = packed.view("<u4").reshape(-1, columns)  # (words, columns)
    shifted = np.empty(columns, dtype=np.uint32)
    for lane in range(lanes):
        word, shift = divmod(lane * bits, 32)
        grid[lane] += np.right_shift(into[word], np.uint32(shift), out=shifted)
        if shift + bits > 32:
            # The two parts have no bit in common.
            grid[lane] += np.left_shift(into[word + 1], np.uint32(32 - shift), out=shifted)


def _layout(bits: int) -> tuple[int, int]:
    common = math.gcd(bits, 32)
    return 32 // common, bits // common
