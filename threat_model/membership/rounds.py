"""Membership over the rounds of a run as they were opened: log likelihood ratios of candidates add up over rounds.

Noise, batches and draws are fresh in every round. Of an opened sum the attacker knows the state before and the
mechanism, and nothing of anybody's data. What the others of a batch add, it takes for further noise with the second
moments that gradients of public examples have, and whitens the sum by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...blocks.examples import Examples
from ...privacy.dp_sgd import DPSGD
from ...privacy.secure_step import SecureStep
from ..block_problem import BlockProblem
from ..intervals import Array
from .sums import Hypotheses, Participation, gradients_of, log_ratio

_AT_ONCE = 16  # candidates whose gradients are held
_MEDIAN = 0.6745  # of |x|, x ~ N(0, 1)


@dataclass(frozen=True)
class Background:
    """All of a sum but the candidate: noise of covariance s^2 I + sum_k a_k u_k u_k^T.

    `directions`: the u_k (k, P), orthonormal; `factors` (k,): s over the root of s^2 + a_k; `deviation`: s.
    """

    directions: Tensor
    factors: Tensor
    deviation: float

    @classmethod
    def of(cls, gradients: Tensor, count: float, noise: float) -> Background:
        """With what `count` unknown examples add, as clipped gradients (m, P) of public ones have it, and the
        mechanism's noise of this deviation.

        Of m examples the m directions hold all; what is new in another example, each leaves-one-out rest shows.
        """
        wide = gradients.double()
        gram = wide @ wide.T  # (m, m)
        m = len(wide)
        # The squared distance of an example from the span of the others is 1 / (G^-1)_ii.
        ridge = 1e-9 * gram.diagonal().mean() * torch.eye(m, dtype=gram.dtype)
        new = 1 / torch.linalg.inv(gram + ridge).diagonal()
        rest = float(count * new.mean()) / wide.shape[1]
        values, vectors = torch.linalg.eigh(gram)
        kept = values > 1e-9 * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        directions = (vectors / values.sqrt()).T @ wide
        white = noise**2 + rest
        factors = (white / (white + count * values / m)).sqrt()
        return cls(directions.float(), factors.float(), white**0.5)

    def whitened(self, vectors: Tensor) -> Tensor:
        """(..., P) in which all background is noise of deviation s in every coordinate."""
        single = vectors.float()
        return single - ((single @ self.directions.T) * (1 - self.factors)) @ self.directions


@dataclass(frozen=True)
class OpenedSum:
    """`vector` (P,): a sum of clipped gradients before its `background`; `participation`: how it takes an example.

    `planted` (n,), bool, in a control: the candidates each of whom has been added to a sum of its own.
    """

    vector: Tensor
    background: Background
    participation: Participation
    planted: Tensor | None = None


def log_ratios(
    sums: Sequence[OpenedSum],
    problem: BlockProblem,
    mechanism: DPSGD | SecureStep,
    candidates: Examples,
    draws: int,
    generator: torch.Generator,
) -> list[Array]:
    """log p(sum | member) / p(sum | not) (n,) of each of the n candidates, for each sum from this state.

    `problem`: of the block in the state before, `mechanism`: that clips. `draws`: of an attacker for a candidate;
    one more is what a control's members add.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    products: list[list[Array]] = [[] for _ in sums]
    grams: list[list[Array]] = [[] for _ in sums]
    vectors = [each.background.whitened(each.vector) for each in sums]
    for part in torch.arange(len(candidates)).split(_AT_ONCE):
        drawn = gradients_of(problem, mechanism, candidates[part], draws + 1, generator)
        for i, each in enumerate(sums):
            g = each.background.whitened(drawn).view(len(part), draws + 1, -1)
            g, own = g[:, :draws], g[:, draws:]
            found = g @ vectors[i]
            if each.planted is not None:
                found = found + each.planted[part, None] * (g @ own.mT)[..., 0]
            products[i].append(found.double().numpy())
            grams[i].append((g @ g.mT).double().numpy())
    ratios = []
    for i, each in enumerate(sums):
        y, gram = np.concatenate(products[i]), np.concatenate(grams[i])
        # Most candidates are in no given batch, so the middle of them shows how much the background really is.
        sizes = np.sqrt(np.einsum("ndd->nd", gram)).clip(1e-30)
        seen = float(np.median(np.abs(y) / sizes)) / _MEDIAN
        hypotheses = Hypotheses.of(each.participation, draws, rng)
        ratios.append(log_ratio(y, gram, max(seen, each.background.deviation), hypotheses))
    return ratios
