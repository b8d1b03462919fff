"""What rounding may add to a clipped sum, against float64 and against the bound that the clip pays for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedblocks.privacy.book_keeping import Ghost, Use
from fedblocks.privacy.clipping import PerExampleClipping, lowered
from fedblocks.privacy.grouping import grouping, slack

ROWS = (1, 2, 5, 17, 34, 65, 130, 1024, 20_000)


@pytest.mark.parametrize("rows", ROWS)
def test_four_groups_of_the_heaviest_examples_stay_within_the_slack(rows: int) -> None:
    """Would catch groups so large that the bound of rounding passes what the clip sets aside.

    Oracle: Higham 2002, section 3.1, in exact fractions of the slack.
    """
    group = grouping(rows, torch.float32)
    terms = group.size * rows * 2.0**-24
    gamma = terms / (1 - terms)
    heaviest = slack(torch.float32) / group.cost  # masses in clips that are not clipped further
    assert 4 * group.size * gamma * heaviest <= slack(torch.float32) * (1 + 1e-12)
    assert heaviest <= 14 * (1 + 1e-12)
    assert group.size == 1 or heaviest >= 7


def tokens(kind: str, n: int, t: int, width: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, t, width, generator=generator)
    if kind == "aligned":
        return x[:1, :1].expand(n, t, width).contiguous()
    if kind == "binades":
        return x * torch.logspace(-6, 6, n)[:, None, None]
    if kind == "cancelling":  # every two tokens of an example nearly take each other back
        half = x[:, : t // 2]
        return torch.cat([half, -half * (1 + 1e-6), x[:, 2 * (t // 2) :] * 1e-6], dim=1)
    return x


@pytest.mark.parametrize("kind", ["random", "aligned", "binades", "cancelling"])
@pytest.mark.parametrize("t", [5, 17, 64])
def test_a_groups_sum_is_as_near_to_the_exact_one_as_the_bound_says(kind: str, t: int) -> None:
    """Would catch a mass that is too small, and a bound that kernels do not keep."""
    generator = torch.Generator().manual_seed(t)
    group = grouping(t, torch.float32)
    a = tokens(kind, group.size, t, 33, generator)
    g = torch.randn(group.size, t, 21, generator=generator)
    if kind == "cancelling":
        g = torch.cat([g[:, : t // 2], g[:, : t // 2], g[:, 2 * (t // 2) :]], dim=1)
    part = Ghost([Use(a, g)], False)
    norms = part.norms()
    factors = torch.rand(group.size, generator=generator, dtype=torch.float64).float().double()
    found = {"weight": torch.zeros(21, 33, dtype=torch.float64)}
    part.add_weighted_sum(factors, found, group.size)
    scaled = (g * factors.float()[:, None, None]).double()  # an example's own rounding is not the sum's
    exact = torch.einsum("ntp,ntd->pd", scaled, a.double())
    terms = group.size * t * 2.0**-24
    allowed = terms / (1 - terms) * float((factors * norms.mass.double()).sum())
    assert float((found["weight"] - exact).norm()) <= allowed
    # The mass is an upper bound, and not more than rounding above the true one.
    mass = (a.double().norm(dim=2) * g.double().norm(dim=2)).sum(dim=1)
    assert (norms.mass >= mass).all()
    torch.testing.assert_close(norms.mass.double(), mass, rtol=1e-3, atol=1e-30)
    lengths = torch.einsum("ntp,ntd->npd", g.double(), a.double()).flatten(1).norm(dim=1)
    assert (norms.squared.double().sqrt() >= lengths).all()


def test_an_example_that_hides_a_large_mass_is_clipped_by_it() -> None:
    """The attack: tokens that take each other back leave a small gradient, and the rounding of large products.

    Would catch a clip by the norm alone: 16 such examples moved the sum of their companions by rounding.
    """
    torch.manual_seed(0)
    n, t = 16, 16
    half = torch.randn(n, t // 2, 40)
    x = torch.cat([half, -half], dim=1)  # the same gradients go out of both halves of a linear map
    net = nn.Linear(40, 30, bias=False)
    with PerExampleClipping(net, max_grad_norm=1.0, examples_at_once=n) as clipping:
        found = clipping.gradients(lambda places: net(x[places]).sum(dim=(1, 2)), torch.arange(n))
        sums = clipping.sum(lambda places: net(x[places]).sum(dim=(1, 2)), examples=n)
    mass = (x.norm(dim=2) * 30**0.5).sum(dim=1)
    [cost] = [values for name, values in found.items() if "cost" in name]
    torch.testing.assert_close(
        cost.sqrt(), mass.double() * grouping(t, torch.float32).cost, rtol=1e-3, atol=0
    )
    norm = found[".squared_norm"].sqrt()
    assert (cost.sqrt() / slack(torch.float32) > norm).all()
    assert float(sums.vector.norm()) <= n * slack(torch.float32)


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_sums_of_neighbours_in_coupled_orders_are_one_clip_apart(clipping: str) -> None:
    """Would catch rounding that reaches past the two groups which an example and whom it displaces are in.

    The new example takes a place, and who was there goes to the end: the pairs of orders that the proof compares.
    """
    torch.manual_seed(1)
    n, t, clip = 203, 17, 0.01
    x = torch.randn(n + 1, t, 24) * torch.logspace(-3, 3, n + 1)[torch.randperm(n + 1), None, None]
    net = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 24))

    def total(order: Tensor) -> Tensor:
        return clipper.sum(
            lambda places: net(x[order[places]]).square().sum(dim=(1, 2)), examples=len(order)
        ).vector

    with PerExampleClipping(
        net,
        max_grad_norm=clip,
        clipping=clipping,
        examples_at_once=32,  # type: ignore[arg-type]
    ) as clipper:
        for place in (0, 31, 32, 100, 202):
            order = torch.randperm(n)
            neighbour = torch.cat([order, order[place : place + 1]])
            neighbour[place] = n
            assert float((total(neighbour) - total(order)).norm()) <= clip
        alone = total(torch.tensor([n]))
        assert float(alone.norm()) <= lowered(clip)
        # All others keep their bits: what the neighbour adds is what it adds alone, to rounding of two groups.
        order = torch.randperm(n)
        appended = total(torch.cat([order, torch.tensor([n])])) - total(order)
        assert float((appended - alone).norm()) <= slack(torch.float32) * clip
