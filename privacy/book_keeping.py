"""Book-keeping: clipped gradient sums from one forward and one backward pass (Bu et al. 2023, ICML).

A layer's weight gradient for one example is g^T a, with a its input activations and g its output gradients. Where
it is large it is never formed: its norm follows from the Gram matrices of a and g, and the clipped sum from matrix
products in which every example carries its clip factor (`Ghost`). Where forming it is cheaper, it is formed
(`Formed`). Sums are added up in float64, group by group of examples (`grouping`).

The uses of one layer, and the noise draws of one example, belong to one gradient: they are summed, or their
Gram matrices crossed, before anything is squared.

Norms are computed in the precision of the pass, float32 at the least, and every norm below is an upper bound:
the largest possible rounding error (Higham 2002, section 3.1) is added to it, so that rounding cannot exceed the
clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedLayer


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input activations `a` and output gradients `g`, in the layer's precision.

    Both have n m rows: m draws of n examples, those of one example side by side.
    """

    a: Tensor
    g: Tensor

    # The Gram matrices of `a`, bias included, (n, T, T): see `gram_ahead`.
    gram: Tensor | None = None

    def of(self, examples: int) -> Use:
        """(n, T, d) and (n, T, p): all rows of one example side by side, in float32 or better."""
        a, g = _wide(self.a), _wide(self.g)
        return Use(a.reshape(examples, -1, a.shape[-1]), g.reshape(examples, -1, g.shape[-1]), self.gram)


@dataclass(frozen=True)
class Norms:
    """Upper bounds for each example, (n,): of its squared gradient norm and of its mass (see `grouping`)."""

    squared: Tensor
    mass: Tensor


class Formed:
    """The named parameters' per-example gradients (n, ...), held in memory."""

    rows = 1

    def __init__(self, gradients: dict[str, Tensor]) -> None:
        self.gradients = gradients

    def norms(self) -> Norms:
        flat = [g.flatten(1) for g in self.gradients.values()]
        total = sum((torch.linalg.vector_norm(g, dim=1).square() for g in flat), flat[0].new_zeros(()))
        finest = torch.finfo(total.dtype)
        # Sums run in lanes, so their error grows as the logarithm of the size: 100 epsilons hold any of them.
        squared = total * (1 + 100 * finest.eps) + sum(g.shape[1] for g in flat) * finest.tiny
        return Norms(squared, _root(squared))

    def tensors(self) -> list[Tensor]:
        """All tensors that the sum is computed from, (n, ...) each."""
        return list(self.gradients.values())

    def add_weighted_sum(self, factors: Tensor, sums: Mapping[str, Tensor], group: int) -> None:
        """Add the sum over examples, each times its factor (n,), to float64 `sums` of the parameters' shapes."""
        for name, g in self.gradients.items():
            total = sums[name].view(-1)
            for weights, part in zip(
                factors.to(g.dtype).split(group), g.flatten(1).split(group), strict=True
            ):
                total.add_(weights @ _finite(part))


class Ghost:
    """Gradients of a linear map's weight (p, d) and bias (p,), held as input activations and output gradients.

    `uses` have a (n, T, d) and g (n, T, p). The bias counts as one more column of the weight, whose input is 1.
    """

    def __init__(self, uses: Sequence[Use], bias: bool) -> None:
        self.uses, self.bias = uses, bias
        self.rows = sum(use.a.shape[1] for use in uses)

    def norms(self) -> Norms:
        """An upper bound of |sum_t g_t a_t^T|^2 = sum over s, t of (a_s . a_t)(g_s . g_t)."""
        products, lengths_a, lengths_g = [], [], []
        for use in self.uses:
            gram_a = use.gram if use.gram is not None else _gram(use.a, self.bias)
            gram_g = _gram(use.g, False)
            lengths_a.append(gram_a.diagonal(dim1=1, dim2=2))
            lengths_g.append(gram_g.diagonal(dim1=1, dim2=2))
            products.append((gram_a * gram_g).sum(dim=(1, 2)))
        for one, other in combinations(self.uses, 2):
            gram_a = one.a @ other.a.mT + int(self.bias)
            products.append(gram_a.mul_(one.g @ other.g.mT).sum(dim=(1, 2)).mul_(2))
        lost, mass = self._hidden(torch.cat(lengths_a, 1), torch.cat(lengths_g, 1))
        products.append(lost)
        return Norms(_summed(products), mass)

    def _hidden(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (n,) of what rounding and underflow took off the squared norm, and of the mass.

        From the squared lengths of a's and g's rows (n, T).
        """
        finest = torch.finfo(a.dtype)
        d, p, t = self.uses[0].a.shape[2] + self.bias, self.uses[0].g.shape[2], a.shape[1]
        smallest = max(d, p) * finest.tiny
        mass = _root(a + smallest).mul_(_root(g + smallest)).sum(dim=1)
        hidden = (d + p + t) * finest.eps
        lost = a.sum(dim=1).add_(g.sum(dim=1)).mul_(t * smallest)
        return lost.add_(mass.square(), alpha=hidden), mass.mul_(1 + hidden)

    def tensors(self) -> list[Tensor]:
        """All tensors that the sum is computed from, (n, ...) each."""
        return [values for use in self.uses for values in (use.a, use.g)]

    def add_weighted_sum(self, factors: Tensor, sums: Mapping[str, Tensor], group: int) -> None:
        """Add the sum over examples, each times its factor (n,), to float64 `sums` of the parameters' shapes."""
        total = sums["weight"].flatten(1)  # a view; a convolution's weight has its patch in more dimensions
        product = total.new_empty(total.shape, dtype=self.uses[0].a.dtype)
        for use in self.uses:
            weights = factors.to(use.a.dtype)[:, None, None]
            tokens, of_a = use.a.shape[1], use.a.shape[2] < use.g.shape[2]
            # The weight of every row in the bias: its factor, or 1 where g is multiplied by it already.
            each = weights.expand(-1, tokens, -1).flatten() if of_a else weights.new_ones(len(use.a) * tokens)
            rows = each.split(group * tokens)
            # A group's values stay in cache until its products are taken.
            parts = zip(use.a.split(group), use.g.split(group), weights.split(group), rows, strict=True)
            for a, g, w, row in parts:
                if of_a:
                    a, g = (a * w).nan_to_num_(0.0, 0.0, 0.0), _finite(g)
                else:
                    a, g = _finite(a), (g * w).nan_to_num_(0.0, 0.0, 0.0)
                a, g = a.flatten(0, 1), g.flatten(0, 1)
                total.add_(torch.mm(g.T, a, out=product))
                if self.bias:
                    sums["bias"].add_(row @ g)


def _gram(rows: Tensor, bias: bool) -> Tensor:
    """The Gram matrix of each example's rows, with a column of ones for a bias: (n, T, d) -> (n, T, T)."""
    t, d = rows.shape[1:]
    if not (16 < t <= 32 and d > 192):
        gram = rows @ rows.mT
        return gram.add_(1) if bias else gram
    # Matrix kernels take as long for 17 rows as for 32. Of the four quarters two are transposes of each other.
    first, second = rows.tensor_split(2, dim=1)
    h = first.shape[1]
    gram = rows.new_empty(len(rows), t, t)
    gram[:, :h, :h] = first @ first.mT
    gram[:, h:, h:] = second @ second.mT
    gram[:, :h, h:] = first @ second.mT
    gram[:, h:, :h] = gram[:, :h, h:].mT
    return gram.add_(1) if bias else gram


def gram_ahead(layer: nn.Module, a: Tensor, examples: int) -> Tensor | None:
    """The Gram matrices of a linear layer's input activations; None where its norms do not need them.

    Computed in the forward pass, while `a` is in cache. They take T^2 values an example, `a` takes T d.
    """
    if type(layer) is not nn.Linear or not trains(layer, "weight") or len(a) % examples:
        return None
    rows = a.reshape(examples, -1, a.shape[-1])
    if not _stays_ghost(rows.shape[1], layer.in_features, layer.out_features):
        return None
    with torch.autocast(a.device.type, enabled=False):  # no norms in half precision
        return _gram(_wide(rows), trains(layer, "bias"))


Gradients = Formed | Ghost


def _linear(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[Gradients]:
    return _linear_map(layer, [use.of(examples) for use in uses])


def _stays_ghost(t: int, d: int, p: int) -> bool:
    """Whether it is cheaper never to form the gradient of a weight (p, d) that was applied to T rows.

    Per example, Gram matrices take T^2 (d + p) operations beyond what the sum takes. A formed gradient is
    written once and read twice, which was measured to cost 16 operations for each of its d p values. It must not
    take more than twice the memory of a and g.
    """
    return 16 * d * p > t * t * (d + p) or d * p > 2 * t * (d + p)


def _linear_map(layer: nn.Module, uses: list[Use]) -> list[Gradients]:
    """Weight (p, d) and bias (p,) of a map that takes rows of a to rows of g."""
    weight, bias = trains(layer, "weight"), trains(layer, "bias")
    t, d, p = sum(use.a.shape[1] for use in uses), uses[0].a.shape[2], uses[0].g.shape[2]
    if weight and _stays_ghost(t, d, p):
        return [Ghost(uses, bias)]
    formed = {}
    if weight:
        formed["weight"] = _summed([use.g.mT @ use.a for use in uses])
    if bias:
        formed["bias"] = _summed([use.g.sum(dim=1) for use in uses])
    return [Formed(formed)]


def _convolution(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[Gradients]:
    """A convolution is a linear map of input patches; with `groups`, several such maps side by side."""
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    groups, (h, w) = layer.groups, layer.kernel_size
    rows: list[Use] = []
    for use in uses:
        patches = F.unfold(
            _wide(use.a), (h, w), dilation=layer.dilation, padding=layer.padding, stride=layer.stride
        )  # (N, C h w, L)
        rows.append(Use(_by_example(patches, examples), _by_example(_wide(use.g).flatten(2), examples)))
    if groups == 1:
        return _linear_map(layer, rows)
    formed = {}
    if trains(layer, "bias"):
        formed["bias"] = _summed([use.g.sum(dim=1) for use in rows])
    if trains(layer, "weight"):
        by_group = [
            (use.a.unflatten(2, (groups, -1)), use.g.unflatten(2, (groups, -1))) for use in rows
        ]  # (n, L, groups, ...)
        formed["weight"] = _summed([torch.einsum("ntgp,ntgd->ngpd", g, a) for a, g in by_group])
    return [Formed(formed)]


def _by_example(x: Tensor, examples: int) -> Tensor:
    """(n m, C, L) -> (n, m L, C)"""
    return x.mT.reshape(examples, -1, x.shape[1])


class _Rows:
    """Gradients of the table rows that each example looked up; those of equal indices are added."""

    rows = 0  # summed in float64

    def __init__(self, index: Tensor, g: Tensor) -> None:
        self.index, self.g = index, g  # (n, T), (n, T, D)

    def norms(self) -> Norms:
        finest = torch.finfo(self.g.dtype)
        same = (self.index[:, :, None] == self.index[:, None, :]).to(self.g.dtype)  # (n, T, T)
        gram = self.g @ self.g.mT
        d, t = self.g.shape[2], self.g.shape[1]
        length = _root(gram.diagonal(dim1=1, dim2=2) + d * finest.tiny)
        hidden = (d + t) * finest.eps * length.sum(dim=1).square() + t * t * d * finest.tiny
        return Norms(gram.mul_(same).flatten(1).sum(dim=1) + hidden, length.sum(dim=1))

    def tensors(self) -> list[Tensor]:
        return [self.index, self.g]

    def add_weighted_sum(self, factors: Tensor, sums: Mapping[str, Tensor], group: int) -> None:
        g = _finite(self.g).double() * factors[:, None, None]
        # Summed apart first: fewer additions to a large sum.
        total = torch.zeros_like(sums["weight"])
        sums["weight"].add_(total.index_add_(0, self.index.flatten(), g.flatten(0, 1)))


def _embedding(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[_Rows]:
    assert isinstance(layer, nn.Embedding)
    index = torch.cat([use.a.reshape(examples, -1) for use in uses], dim=1)
    g = torch.cat([_wide(use.g).reshape(examples, -1, layer.embedding_dim) for use in uses], dim=1)
    if layer.padding_idx is not None:
        g = g * (index != layer.padding_idx)[:, :, None]
    return [_Rows(index, g)]


def _layer_norm(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[Gradients]:
    assert isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    shape = list(layer.normalized_shape)

    def normalised(a: Tensor) -> Tensor:
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(a, shape, eps=layer.eps)
        # The layer ran in the input's own precision, whose epsilon is its default.
        eps = layer.eps if layer.eps is not None else torch.finfo(layer.weight.dtype).eps
        return F.rms_norm(a, shape, eps=eps)

    def by_example(x: Tensor) -> Tensor:
        return x.reshape(examples, -1, *shape).sum(dim=1)

    return _scale_and_shift(
        layer,
        weight=lambda: _summed([by_example(_wide(u.g) * normalised(_wide(u.a))) for u in uses]),
        bias=lambda: _summed([by_example(_wide(u.g)) for u in uses]),
    )


def _group_norm(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[Gradients]:
    assert isinstance(layer, nn.GroupNorm)

    def by_example(x: Tensor) -> Tensor:
        """(n m, C, ...) -> (n, C)"""
        return x.reshape(examples, -1, *x.shape[1:2], x[0, 0].numel()).sum(dim=(1, 3))

    def normalised(a: Tensor) -> Tensor:
        return F.group_norm(a, layer.num_groups, eps=layer.eps)

    return _scale_and_shift(
        layer,
        weight=lambda: _summed([by_example(_wide(u.g) * normalised(_wide(u.a))) for u in uses]),
        bias=lambda: _summed([by_example(_wide(u.g)) for u in uses]),
    )


def _scale_and_shift(
    layer: nn.Module, *, weight: Callable[[], Tensor], bias: Callable[[], Tensor]
) -> list[Gradients]:
    """These gradients are no larger than the layer's input, so they are always formed."""
    return [
        Formed({name: form()}) for name, form in (("weight", weight), ("bias", bias)) if trains(layer, name)
    ]


LAYERS: dict[type[nn.Module], Callable[[nn.Module, Sequence[Use], int], Sequence[Gradients | _Rows]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}


def gradients_of(layer: nn.Module, uses: Sequence[Use], examples: int) -> list[Gradients | _Rows]:
    """The gradients of a layer's trainable parameters, from all its calls in one pass."""
    return list(LAYERS[_kind(layer)](layer, uses, examples))


def _kind(layer: nn.Module) -> type[nn.Module]:
    """Its class, or the one that the class names as `per_example_like`: of the same parameters and gradients."""
    kind: type[nn.Module] = getattr(type(layer), "per_example_like", type(layer))
    return kind


def check_supported(layer: nn.Module, where: str) -> None:
    """Raises UnsupportedLayer for a layer whose per-example gradients are not implemented."""
    reason = None
    if _kind(layer) not in LAYERS:
        reason = f"parameters of {type(layer).__name__}"
    elif isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        reason = "an Embedding with max_norm or scale_grad_by_freq"
    elif isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        reason = "a Conv2d whose padding is not a number of zeros"
    if reason:
        raise UnsupportedLayer(
            f"{where}: no per-example gradient for {reason}; freeze it or use a supported layer"
        )


def trains(layer: nn.Module, name: str) -> bool:
    parameter = getattr(layer, name, None)
    return parameter is not None and bool(parameter.requires_grad)


def _summed(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def _wide(x: Tensor) -> Tensor:
    """At least float32: norms are not computed in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _root(values: Tensor) -> Tensor:
    """Square roots of positive values, to a few last bits, in constant time.

    Vector libraries take four times as long for the root of infinity, and more for some other values.
    """
    return values.rsqrt().mul_(values)


def _finite(values: Tensor) -> Tensor:
    """Values with zero in place of any that is not finite: its example has factor 0, but 0 times infinity is NaN.

    Always applied to all values, so that timing does not reveal whether there was one.
    """
    return values.nan_to_num(0.0, 0.0, 0.0)
