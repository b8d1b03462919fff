"""Per-example clipping of every layer kind and in every way of clipping, against loops and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.clipping_loop import automatic, clipped_sum, flat, gradients_one_by_one, norm_of, per_layer
from support.places import draws_of, only
from torch import Tensor, nn

from fedblocks.errors import UnsupportedLayer
from fedblocks.privacy.clipping import PerExampleClipping, examples_within


class LoRA(nn.Module):
    """A frozen map with a trained low-rank one beside it (Hu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = (
            nn.Linear(12, 12),
            nn.Linear(12, 2, bias=False),
            nn.Linear(2, 12, bias=False),
        )
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Tokens(nn.Module):
    """A class token and positions, as rows of tables; the positions are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.position, self.mix = (
            nn.Embedding(1, 12),
            nn.Embedding(4, 12, padding_idx=2),
            nn.Linear(12, 12),
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(4).expand(len(x), -1)
        token = self.kind(torch.zeros(len(x), 1, dtype=torch.long))
        x = torch.cat([token, x[:, :4] + self.position(rows)], dim=1)
        return self.mix(x).sin()[:, :4] + self.position(rows)


class Modulated(nn.Module):
    """adaLN: scale and shift of a whole example from its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.inner = nn.Linear(12, 24), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.modulation(x.mean(dim=1))[:, None].chunk(2, dim=-1)
        return x + self.inner(F.layer_norm(x, (12,)) * (1 + scale) + shift)


def images(layer: nn.Module) -> nn.Module:
    """The layer on (N, 4, 6, 3), of which (N, 18, 4) are made."""

    class OnImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.reshape(len(x), 4, 6, -1).tanh())
            return out.flatten(2)

    return OnImages()


class Long(nn.Module):
    """17 to 32 rows of more than 192 values, read twice by the same layer: Gram matrices by quarters."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.wide = nn.Linear(4, 200), nn.Linear(200, 200)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x.reshape(len(x), 18, 4)).tanh()
        return self.wide(self.wide(h).tanh() + h)  # type: ignore[no-any-return]


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(12, 5),
    "only-bias": lambda: nn.Linear(12, 5).requires_grad_(False),
    "long": Long,
    "lora": LoRA,
    "tokens": Tokens,
    "modulated": Modulated,
    "layer-norm": lambda: nn.LayerNorm([6, 12]),
    "rms-norm": lambda: nn.RMSNorm(12),
    "group-norm": lambda: images(nn.GroupNorm(2, 4)),
    "conv": lambda: images(nn.Conv2d(4, 6, 3, padding=1)),
    "conv-strided": lambda: images(nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=2, bias=False)),
    "conv-groups": lambda: images(nn.Conv2d(4, 8, 3, padding=1, groups=2)),
}  # fmt: skip


def example(kind: str, n: int = 5, draws: int = 1):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = KINDS[kind]().double()
    if kind == "only-bias":
        net.bias.requires_grad_(True)
    x = (
        torch.randn(n * draws, 6, 12, dtype=torch.float64)
        * torch.logspace(-1, 1, n).repeat_interleave(draws)[:, None, None]
    )

    def losses(places: Tensor) -> Tensor:
        out = net(x[draws_of(places, draws)])
        return (out * torch.arange(1, out.shape[-1] + 1)).flatten(1).square().sum(dim=1)

    return net, losses


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_equals_a_loop_to_1e_6(kind: str, at_once: int) -> None:
    """Would catch a patch, group, padding or row that is counted in the wrong place, or twice."""
    net, losses = example(kind)
    bound = 3.0
    with PerExampleClipping(net, max_grad_norm=bound, examples_at_once=at_once) as clipping:
        found = clipping.sum(losses, examples=5)
    expected = clipped_sum(gradients_one_by_one(net, losses, examples=5), flat(bound, torch.float64))
    torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["modulated", "conv", "tokens", "group-norm"])
def test_draws_of_one_example_are_one_gradient(kind: str) -> None:
    """Would catch draws that are clipped apart: three gradients of the bound instead of one."""
    net, losses = example(kind, draws=3)
    with PerExampleClipping(net, max_grad_norm=2.0) as clipping:
        found = clipping.sum(losses, examples=5, draws=3)
    gradients = gradients_one_by_one(net, losses, examples=5, draws=3)
    expected = clipped_sum(gradients, flat(2.0, torch.float64))
    torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-9)


def test_per_layer_clipping_bounds_each_layer_by_its_share() -> None:
    """Closed form: L layers to bound / sqrt(L) each; together they still move the sum by the bound at most."""
    net, losses = example("modulated")
    with PerExampleClipping(net, max_grad_norm=2.0, clipping="per-layer") as clipping:
        found = clipping.sum(losses, examples=5)
        one = clipping.sum(lambda part: losses(only(4).expand(len(part))), examples=1)
    expected = clipped_sum(gradients_one_by_one(net, losses, examples=5), per_layer(2.0, torch.float64))
    torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-9)
    assert float(one.vector.norm()) <= 2.0


def test_automatic_clipping_gives_every_example_the_same_size() -> None:
    """Closed form: C g / (|g| + 0.01), also for gradients far below the bound."""
    net, losses = example("linear")
    with PerExampleClipping(net, max_grad_norm=1e3, clipping="automatic") as clipping:
        found = clipping.sum(losses, examples=5)
    expected = clipped_sum(gradients_one_by_one(net, losses, examples=5), automatic(1e3, torch.float64))
    torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-9)


def test_examples_within_the_bound_are_counted() -> None:
    net, losses = example("linear")
    norms = [norm_of(g) for g in gradients_one_by_one(net, losses, examples=5)]
    bound = sorted(norms)[2] * 1.001
    with PerExampleClipping(net, max_grad_norm=bound) as clipping:
        found = clipping.sum(losses, examples=5)
    assert found.within == 3
    assert "within" not in repr(found)
    assert "examples" not in repr(found)


def test_the_memory_budget_decides_how_many_go_at_once() -> None:
    """Would catch a budget that is not kept: what a pass keeps, counted by autograd's own hooks."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    x = torch.randn(200, 8, 64)
    sizes = []

    def losses(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return net(x[part]).square().sum(dim=(1, 2))

    at_once = examples_within(400_000, net, losses)
    # Inputs of two maps and of the activation, and the square's: 4 x 8 x 64 floats an example.
    assert at_once == 400_000 // (4 * 8 * 64 * 4)
    sizes.clear()
    with PerExampleClipping(net, max_grad_norm=1.0, examples_at_once=at_once) as clipping:
        clipping.sum(losses, examples=200)
    assert sizes == [at_once] * -(-200 // at_once)
    assert examples_within(4 * 8 * 64 * 4 - 1, net, losses) == 0


def test_a_weight_used_past_its_layer_is_refused_by_name() -> None:
    """Would catch what Opacus does not notice: a use that gets no per-example gradient at all."""

    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.inner(x), self.inner.weight)

    net = Past()
    with (
        PerExampleClipping(net, max_grad_norm=1.0) as clipping,
        pytest.raises(UnsupportedLayer, match=r"inner\.weight.*1 times past"),
    ):
        clipping.sum(lambda part: net(torch.randn(3, 4)[part]).sum(dim=1), examples=3)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 1, 3, padding_mode="circular"), nn.Conv2d(1, 1, 3, padding="same"),
              nn.Embedding(3, 2, max_norm=1.0), nn.BatchNorm2d(3), nn.MultiheadAttention(4, 2)]
)  # fmt: skip
def test_what_cannot_be_clipped_is_refused_before_training(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayer):
        PerExampleClipping(nn.Sequential(layer), max_grad_norm=1.0)


@pytest.mark.parametrize("bound", [0.5, 1e-3])
def test_bfloat16_passes_keep_norms_in_float32(bound: float) -> None:
    """Near the float32 sum, by bfloat16's own error, and every contribution within the bound."""
    net, _ = example("modulated")
    net.float()
    x = torch.randn(5, 6, 12)

    def losses(part: Tensor) -> Tensor:
        return net(x[part]).square().sum(dim=(1, 2))

    def half(part: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(part)

    with PerExampleClipping(net, max_grad_norm=bound) as clipping:
        one, exact = (clipping.sum(f, examples=1).vector for f in (half, losses))
        sums = [clipping.sum(f, examples=5).vector for f in (half, losses)]
    assert float(one.norm()) <= bound
    assert 0 < float((one - exact).norm()) < 0.05 * bound
    assert float((sums[0] - sums[1]).norm()) < 0.05 * 5 * bound
