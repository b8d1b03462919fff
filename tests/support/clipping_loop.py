"""The oracle of per-example clipping: a loop over the examples, one backward pass each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedblocks.privacy.clipping import PerExampleClipping, lowered
from support.places import only


def assert_sum_is_that_of_a_loop(
    block: nn.Module, losses: Callable[[Tensor], Tensor], examples: int, draws: int, bound: float
) -> None:
    """The clipped sum of `losses`, of (n,) examples those of their n draws, against gradients taken one by one."""
    with PerExampleClipping(block, max_grad_norm=bound) as clipping:
        found = clipping.sum(losses, examples=examples, draws=draws).vector
    parameters = [p for _, p in sorted(block.named_parameters())]
    expected = torch.zeros_like(found)
    for i in range(examples):
        gradients = torch.autograd.grad(losses(only(i)).sum() / draws, parameters)
        each = torch.cat([g.reshape(-1) for g in gradients]).double()
        expected += each * min(1.0, lowered(bound) / float(each.norm()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
