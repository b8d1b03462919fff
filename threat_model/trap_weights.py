"""Weights that make a batch's gradient fall apart into single examples, crafted once and sent to every company.

Rows of one layer all measure the same number of an example and differ in their threshold alone, so that an example
adds its input to the gradient of every row below its number: neighbouring rows differ by the examples in between
("bins"; Fowl et al. 2022, arXiv 2110.13057, section 3; trap weights: Boenisch et al. 2023, arXiv 2112.02918). Where
that is one, the difference is its input times a factor; clipping each example's gradient only changes the factor.

In a block the layer is the first one's perceptron as the noisy token runs through it:

    keys      a head attends to one token alone, by what its position adds to it; several share one where p is large
    values    they read C (E x_t + o_t) / sigma_t, in the p + 1 directions in which that varies, times a gain
    proj      puts the heads side by side, beside a constant, and drowns the noisy token in them
    mlp.0     row i: GELU(s (m . y - b_i)), y the normalised token, the b_i spread as m . y is on public data

From y follow x_t / sigma_t and 1 / sigma_t, and so x_t. Embeddings and readout stay as they are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Denoiser
from ..blocks.taps import ContinuousTap
from ..blocks.transformer import Layer
from .block_problem import BlockProblem
from .linear_span import centred

_WEIGHT = "layers.0.mlp.0.weight"
_GAIN = 1e3  # of values and of what is made of them: by so much the noisy token is drowned
_SHARP = 24.0  # widths of a threshold's transition that fit between two thresholds
_ATTENTION = 200.0  # by how much the logit of a head's token exceeds the others', where its deviation is 1
_LOUD = 1e5  # scale of the perceptron's input: the larger, the more of a gradient's norm its rows take
_SPREAD = 1.3  # private data spread wider than public ones
_FLOOR = 1e-5  # a bin without an example holds rounding errors of its neighbours, relative to the largest


@dataclass(frozen=True)
class Traps:
    """A crafted block: `model` with it, and what its maker needs to read examples off.

    `tokens`: how many of an example's T parts the heads carry, the first ones; `rows`: how many thresholds there are.
    """

    model: Denoiser
    tap: ContinuousTap
    tokens: int
    rows: int
    places: Tensor  # (D, H (p + 1)) where the values of H tokens lie in y, orthonormal
    constant: Tensor  # (D,) the direction whose size in y is known, over that size
    factors: Tensor  # (H, p + 1, p + 1): a token's values from (x / sigma, 1 / sigma)

    def carried(self, values: Tensor) -> Tensor:
        """The parts (M, H, p) that the heads carry of a field's values (M, *shape)."""
        return self.tap.cut(values)[:, : self.tokens]

    def read(self, problem: BlockProblem, vector: Tensor, at_most: int) -> Tensor:
        """Parts (G, H, p) of the examples whose bins stand out most in a summed gradient (P,), at most so many."""
        rows = problem.tensors(vector)[_WEIGHT].double()
        bins = rows[:-1] - rows[1:]
        size = bins.norm(dim=1)
        order = size.argsort(descending=True)[:at_most]
        inputs = bins[order[size[order] > _FLOOR * size.max()]]
        known = _not_zero(inputs @ self.constant)[:, None]
        values = (inputs @ self.places / known).view(len(inputs), self.tokens, -1)
        solved = torch.linalg.solve(self.factors, values[..., None])[..., 0]  # (G, H, p + 1)
        parts: Tensor = solved[..., :-1] / _not_zero(solved[..., -1:])
        return parts.nan_to_num(0.0)


def _not_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-150, torch.full_like(values, 1e-150), values)


def unsuited(problem: BlockProblem, tap: ContinuousTap) -> str | None:
    """Why no traps can be set in this block; none where they can."""
    layer = problem.layers.get_submodule("layers.0")
    assert isinstance(layer, Layer)
    tokens, width, part = tap.embedding.shape
    if layer.shape.style != "vit" or tap.norm != "layer":
        return "the block's perceptron has no rows of one threshold each (no GELU layer)"
    if tap.others:
        return f"{tap.others} further tokens whose embedding depends on the example would mix with the heads' own"
    if part + 1 > width - 3:
        return f"a part of {part} values and its scale do not fit into {width - 3} directions"
    if _selectors(tap) is None:
        return f"{tokens} positions cannot be told apart in {width} directions whatever the parts hold"
    return None


def _selectors(tap: ContinuousTap) -> Tensor | None:
    """Directions (T, D): row t gives 1 for token t and 0 for others, whatever their parts; none where none do."""
    tokens, width, _ = tap.embedding.shape
    offset = centred(tap.offset.double(), tap)
    embedding = centred(tap.embedding.double().transpose(1, 2), tap).reshape(-1, width)  # (T p, D)
    _, s, v = torch.linalg.svd(embedding, full_matrices=False)
    basis = v[s > 1e-9 * s[0]]
    if len(basis) + tokens >= width:
        return None
    rest = offset - (offset @ basis.T) @ basis  # (T, D)
    if float(torch.linalg.svdvals(rest)[-1]) < 1e-6 * float(offset.norm(dim=1).max()):
        return None
    found: Tensor = torch.linalg.pinv(rest).T
    return found


def craft(problem: BlockProblem, tap: ContinuousTap, model: Denoiser, public: Tensor) -> Traps:
    """A copy of `model` (float32) with traps in the problem's block; `public` (M, T, p): parts of public examples.

    The caller has asked `unsuited`.
    """
    tokens, width, part = tap.embedding.shape
    made = copy.deepcopy(model)
    block = made.blocks[problem.block]
    first = block.get_submodule("layers.0")
    assert isinstance(first, Layer)
    heads, size = first.shape.heads, width // first.shape.heads
    each = -(-(part + 1) // size)  # heads of a token
    used = min(heads // each, tokens, (width - 3) // (part + 1))
    selectors = _selectors(tap)
    assert selectors is not None
    embedding, offset = tap.embedding.double(), tap.offset.double()

    # What is read of a token: an orthonormal basis of its p + 1 directions, and the factor by which it does.
    readers, factors = [], []
    for h in range(used):
        own = centred(torch.cat([embedding[h], offset[h][:, None]], 1).T, tap).T  # (D, p + 1)
        basis, factor = torch.linalg.qr(own)
        readers.append(basis)
        factors.append(factor)
    ones = torch.ones(width, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(width, width - 1, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(torch.cat([ones, drawn], 1))[0][:, 1:]  # orthogonal to what the norm removes
    places, constant = directions[:, : used * (part + 1)], directions[:, -1]

    qkv = torch.zeros(3, width, width, dtype=torch.float64)
    bias = torch.zeros(3, width, dtype=torch.float64)
    proj = torch.zeros(width, width, dtype=torch.float64)
    for h in range(used):
        own_heads = slice(h * each * size, (h + 1) * each * size, size)  # the first value of each
        bias[0, own_heads] = math.sqrt(size)  # the query of every token alike
        qkv[1, own_heads] = _ATTENTION * selectors[h]
        at = slice(h * each * size, h * each * size + part + 1)
        qkv[2, at] = _GAIN * readers[h].T
        proj[:, at] = _GAIN * places[:, h * (part + 1) : (h + 1) * (part + 1)]
    tokens_of = torch.einsum("tdp,mtp->mtd", embedding, public.double()) + offset
    normed = F.layer_norm(tokens_of, (width,))
    values = torch.stack([normed[:, h] @ readers[h] for h in range(used)], 1).flatten(1)  # (M, H (p + 1))
    level = float(values.norm(dim=1).median())
    y = F.layer_norm(values @ places.T + level * constant, (width,))  # the gains drop out
    along = torch.linalg.svd(y - y.mean(0), full_matrices=False)[2][0]  # tells examples apart best
    measured = y @ along
    mlp = first.mlp
    assert isinstance(mlp, nn.Sequential)
    up, down = mlp[0], mlp[2]
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    rows = up.out_features
    quantiles = torch.special.ndtri((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)
    thresholds = measured.mean() + _SPREAD * measured.std() * quantiles
    sharp = _SHARP / float(thresholds.diff().median())
    # What the perceptron adds is as large as the token itself, so that the loss depends on it.
    hidden = F.gelu(sharp * (measured[:, None] - thresholds)).sum(1).median()
    out = directions[:, -2] * (_GAIN**2 * level / float(hidden))
    modulation = torch.zeros(6, width, dtype=torch.float64)  # shift, scale, gate of either half
    modulation[1] = -1.0  # the noisy token is no key and no value
    modulation[4] = _LOUD - 1
    with torch.no_grad():
        for p in first.parameters():
            p.zero_()
        first.qkv.weight.copy_(qkv.view(3 * width, width))
        first.qkv.bias.copy_(bias.view(-1))
        first.proj.weight.copy_(proj)
        first.proj.bias.copy_(_GAIN**2 * level * constant)
        first.modulation.bias.copy_(modulation.view(-1))
        up.weight.copy_((sharp / _LOUD * along).expand(rows, width))
        up.bias.copy_(-sharp * thresholds)
        down.weight.copy_(out[:, None].expand(width, rows))
        for name, later in block.get_submodule("layers").named_children():
            if name != "0":
                assert isinstance(later, Layer)
                later.modulation.weight.zero_()
                later.modulation.bias.copy_(_closed(width))
    return Traps(made, tap, used, rows, places, constant / level, torch.stack(factors))


def _closed(width: int) -> Tensor:
    """The modulation of a layer that lets the noisy tokens pass as they are."""
    modulation = torch.zeros(6, width)
    modulation[2] = modulation[5] = -1.0
    return modulation.view(-1)
