"""Fixed-point residues: real vectors as integers that a secure sum can add exactly.

Bonawitz et al. (CCS 2017), Fig. 4, takes inputs from Z_R^m with R above n times the largest input. Here
R = 2^bits, negative numbers are two's complement, and the scale is the finest that cannot overflow.
Rounding is to nearest and has no part in any privacy guarantee: noise is added before.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, PrivacyError

# A vector scaled to its bound lands within floating-point error of it, on either side.
NORM_TOLERANCE = 1e-9
_BLOCK = 1 << 15  # values that stay in the second-level cache from one step to the next


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Real vectors of L2 norm <= `bound` from up to `parties` companies, as residues mod 2^bits.

    `scale` (levels per unit) is the largest float with parties * (bound * scale + 1) < 2^(bits - 1):
    a coordinate takes at most bound * scale + 1 levels after rounding, so no sum can wrap.

    Error, per coordinate of the decoded sum of k <= parties vectors: at most k / (2 * scale), that is
    half a level a company (`max_error` for k = parties), apart from float64's own rounding, which
    stays below 2^-20 of a level a company. In L2 over d coordinates: sqrt(d) times that. A vector that is
    over `bound` within the tolerance of 1e-9 may also lose 1e-9 * bound in a coordinate.
    Rounding can increase a vector's L2 norm by sqrt(d) / (2 * scale).

        codec = FixedPoint(bound=1.0, parties=10, bits=32)
        residues = [codec.encode(update) for update in updates]    # each (d,) uint32
        total = codec.decode_sum(sum_mod_2_32)                     # (d,) float64

    Raises:
        InputError: bound, parties or bits are out of range.
    """

    bound: float
    parties: int
    bits: int = 32
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise InputError("bound", self.bound, "expected a finite number above 0")
        if not 2 <= self.bits <= 32:
            raise InputError("bits", self.bits, "expected 2 to 32")
        if not 1 <= self.parties < 2 ** (self.bits - 1):
            raise InputError("parties", self.parties, f"expected 1 to {2 ** (self.bits - 1) - 1}")
        supremum = (Fraction(2 ** (self.bits - 1), self.parties) - 1) / Fraction(self.bound)
        if not Fraction(2) ** -1000 < supremum < Fraction(2) ** 1000:
            raise InputError("bound", self.bound, "expected a magnitude that float64 can scale")
        scale = float(supremum)
        if Fraction(scale) >= supremum:  # the conversion rounds to nearest; the rule is strict
            scale = math.nextafter(scale, 0.0)
        object.__setattr__(self, "scale", scale)

    @property
    def max_error(self) -> float:
        """Largest rounding error in a coordinate of the decoded sum over all parties."""
        return self.parties / (2 * self.scale)

    def encode(self, vector: NDArray[np.float64]) -> NDArray[np.uint32]:
        """`vector` (d,) float64 with norm <= bound -> (d,) uint32 below 2^bits.

        Raises:
            PrivacyError: the vector is not finite or its norm is above the bound.
        """
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float64 or vector.ndim != 1:
            raise InputError("vector", type(vector).__name__, "expected a float64 array of one dimension")
        norm = self._norm(vector)
        if not norm <= 1 + NORM_TOLERANCE:  # also catches NaN
            raise PrivacyError("the vector is not finite or its norm is above the bound")
        residues = np.empty(len(vector), dtype=np.uint32)  # (d,)
        largest = np.uint32(2**self.bits - 1)
        for start in range(0, len(vector), _BLOCK):
            part = slice(start, start + _BLOCK)
            if norm > 1 - NORM_TOLERANCE:
                # At the bound, the tolerance alone could take more levels than the scale allows for.
                levels = np.clip(vector[part], -self.bound, self.bound)
                levels *= self.scale
            else:
                levels = vector[part] * self.scale
            np.rint(levels, out=levels)
            # The scale is chosen so that every level is below 2^31 in magnitude.
            np.bitwise_and(levels.astype(np.int32).view(np.uint32), largest, out=residues[part])
        return residues

    def _norm(self, vector: NDArray[np.float64]) -> float:
        """The norm of vector / bound to 1e-10, summed in blocks, so that many small squares are not lost."""
        parts = [vector[start : start + _BLOCK] for start in range(0, len(vector), _BLOCK)]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = sum(float(part @ part) for part in parts)
            if not 1e-200 < squares < 1e200:  # where squares vanish or overflow, and NaN
                squares = sum(float(np.square(part / self.bound).sum()) for part in parts)
                return math.sqrt(squares) if squares >= 0 else math.nan
        return math.sqrt(squares) / self.bound

    def decode_sum(self, residues: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The sum mod 2^bits (d,) uint32 of up to `parties` encoded vectors -> (d,) float64."""
        result: NDArray[np.float64] = centred(residues, self.bits) / self.scale
        return result


def centred(residues: NDArray[np.uint32], bits: int) -> NDArray[np.int32]:
    """Residues mod 2^bits (d,) uint32 -> the integers of [-2^(bits-1), 2^(bits-1)) that they stand for."""
    if not isinstance(residues, np.ndarray) or residues.dtype != np.uint32 or residues.ndim != 1:
        raise InputError("residues", type(residues).__name__, "expected a uint32 array of one dimension")
    if residues.size and int(residues.max()) >= 2**bits:
        raise InputError("residues", int(residues.max()), f"expected values below 2^{bits}")
    # Up to the sign bit and back: an arithmetic shift fills in the sign.
    unused = 32 - bits
    integers: NDArray[np.int32] = (residues << np.uint32(unused)).view(np.int32) >> unused
    return integers
