"""The RMSNorm of pretrained models: transformers' arithmetic bit for bit, and autograd's per-example gradient."""

from __future__ import annotations

import pytest
import torch
from support.clipping_loop import clipped_sum, flat, gradients_one_by_one
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fedblocks.blocks.pretrained.norms import PretrainedRMSNorm
from fedblocks.errors import UnsupportedLayer
from fedblocks.privacy.clipping import PerExampleClipping

SIZE, EPS = 24, 1e-6
BOTH = pytest.mark.parametrize("offset", [False, True], ids=["llama", "gemma"])
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def norm(offset: bool, dtype: torch.dtype) -> PretrainedRMSNorm:
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(SIZE, generator=generator).to(dtype))
    return PretrainedRMSNorm(SIZE, EPS, offset=offset, weight=weight)


@BOTH
@PRECISIONS
def test_output_is_that_of_transformers_bit_for_bit(offset: bool, dtype: torch.dtype) -> None:
    """Catches another order of roundings, and a weight that is not offset."""
    ours = norm(offset, dtype)
    theirs = (GemmaRMSNorm if offset else LlamaRMSNorm)(SIZE, EPS)
    theirs.weight = ours.weight
    x = torch.randn(5, 7, SIZE, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert ours(x).dtype == dtype
    assert torch.equal(ours(x), theirs(x))


@BOTH
@PRECISIONS
@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clipped_sum_is_that_of_autograd_example_by_example(
    offset: bool, dtype: torch.dtype, bound: float
) -> None:
    """Catches a gradient of the wrong normalised input, and heads of one token counted as examples."""
    layer = norm(offset, dtype)
    x = torch.randn(4, 3, 2, SIZE, generator=torch.Generator().manual_seed(3)).to(dtype)

    def losses(places: Tensor) -> Tensor:
        return layer(x[places]).float().sin().square().sum(dim=(1, 2, 3))

    with PerExampleClipping(layer, max_grad_norm=bound) as clipping:
        found = clipping.sum(losses, examples=4)
    wanted = clipped_sum(gradients_one_by_one(layer, losses, examples=4), flat(bound))
    # bfloat16 has 8 bits: autograd rounds its gradient to it, clipping sums in float32.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (found.vector - wanted).norm() < tolerance * wanted.norm()
    assert found.vector.norm() <= 4 * bound


def test_a_layer_like_no_known_one_is_still_refused() -> None:
    """Catches an attribute that lets any layer through."""

    class Odd(nn.Module):
        per_example_like = nn.Bilinear

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with pytest.raises(UnsupportedLayer, match="Odd"):
        PerExampleClipping(nn.Sequential(Odd()), max_grad_norm=1.0)
