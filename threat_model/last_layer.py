"""What enters a classifier's last linear layer, example by example, from the gradient of a sum of several.

With features H (K, F), labels Y (one-hot) and the layer's W, b, the gradient of the summed cross-entropy is

    dW = D^T H,    D = softmax(H W^T + b) - Y.

Its K leading right singular vectors V span the features: H = A V with A (K, K), and dW V^T = D(A)^T A is a system of
K x classes equations for the K^2 values of A alone, which Levenberg-Marquardt solves from a few likely features.
R-GAP (Zhu & Blaschko 2021) reads features off so where there is one example; here there may be as many as classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from .intervals import Array

_SEARCHES = 10
_SOLVED = 1e-5  # relative residual of a solution: float32 gradients leave less


@dataclass(frozen=True)
class LastLayer:
    """A linear layer, weight (classes, F) and bias (classes,), whose outputs' softmax enters cross-entropy."""

    weight: Tensor
    bias: Tensor

    def unmixed(
        self, gradient: Tensor, labels: Tensor, likely: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        """Features (K, F) of examples with labels (K,), in their order, from the weight's gradient (classes, F).

        `likely` (M, F): features of public examples, from which searches start. None: there is no solution that fits.
        """
        k, classes = len(labels), len(self.weight)
        if k > classes:
            return None
        v = torch.linalg.svd(gradient.double(), full_matrices=False)[2][:k]  # (K, F)
        seen = (gradient.double() @ v.T).numpy()  # (classes, K)
        logits, bias = (v @ self.weight.double().T).numpy(), self.bias.double().numpy()
        wanted = torch.nn.functional.one_hot(labels, classes).double().numpy()

        def outside(flat: Array) -> Array:
            a = flat.reshape(k, k)
            scores = a @ logits + bias
            odds = np.exp(scores - scores.max(1, keepdims=True))
            d = odds / odds.sum(1, keepdims=True) - wanted  # (K, classes)
            rest: Array = (d.T @ a - seen).ravel()
            return rest

        starts = (likely.double() @ v.T).numpy()  # (M, K)
        best, lowest = None, np.inf
        for _ in range(_SEARCHES):
            chosen = torch.randint(len(starts), (k,), generator=generator).numpy()
            found = least_squares(
                outside, starts[chosen].ravel(), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
            )
            if found.cost < lowest:
                best, lowest = found.x, found.cost
        size = float(np.linalg.norm(seen)) or 1.0
        if best is None or (2 * lowest) ** 0.5 > _SOLVED * size:
            return None
        features: Tensor = torch.from_numpy(best.reshape(k, k)) @ v
        return features
