"""Derivatives of one tensor of a gradient along m directions, in factors, and their inner products.

A weight's gradient is W = g^T a with R rows of each; along direction i it changes by dW_i = dg_i^T a + g^T da_i. With
all inner products taken of the factors,

    <dW_i, dW_j> = <dg_i, (a a^T) dg_j> + <dg_i g^T, (da_j a^T)^T> + <(da_i a^T)^T, dg_j g^T> + <(g g^T) da_i, da_j>,

they cost m^2 R (in + out) instead of m^2 in out, and nothing of the weight's size is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseRows:
    """(m, size) as they are."""

    rows: Tensor

    def along(self, tensor: Tensor) -> Tensor:
        """Inner products with a tensor of the parameter's shape, (m,)."""
        return self.rows @ tensor.reshape(-1).to(self.rows.dtype)


@dataclass(frozen=True)
class WeightRows:
    """a (R, in), g (R, out) and their derivatives (m, R, in), (m, R, out)."""

    a: Tensor
    g: Tensor
    da: Tensor
    dg: Tensor

    def along(self, tensor: Tensor) -> Tensor:
        """Inner products with a tensor (out, in), (m,)."""
        t = tensor.to(self.a.dtype)
        return (self.dg * (self.a @ t.T)).sum((1, 2)) + (self.da * (self.g @ t)).sum((1, 2))


Rows = DenseRows | WeightRows


def inner(one: Rows, other: Rows) -> Tensor:
    """(m, m') of two draws' derivatives of one parameter."""
    if isinstance(one, DenseRows):
        assert isinstance(other, DenseRows)
        return one.rows @ other.rows.T
    assert isinstance(other, WeightRows)
    aa, gg = one.a @ other.a.T, one.g @ other.g.T  # (R, R')
    by_output = one.dg.flatten(1) @ torch.matmul(aa, other.dg).flatten(1).T
    by_input = one.da.flatten(1) @ torch.matmul(gg, other.da).flatten(1).T
    mixed = (one.dg @ other.g.T).flatten(1) @ (one.a @ other.da.mT).flatten(1).T
    mixed_back = (one.da @ other.a.T).flatten(1) @ (one.g @ other.dg.mT).flatten(1).T
    return by_output + by_input + mixed + mixed_back
