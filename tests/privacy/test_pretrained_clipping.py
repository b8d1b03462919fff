"""Every architecture of transformers that can be converted, as private training uses it: what one example adds."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clipping_loop import clipped_sum, flat, gradients_one_by_one
from support.families import FixedLosses, Variant
from support.places import draws_of
from support.tiny_models import TINY, save
from torch import Tensor

from fedblocks.blocks import BlockObjective, Denoiser, build_model
from fedblocks.blocks.families import family
from fedblocks.blocks.pretrained.card import read_card, sha256_of
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client import batches
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.privacy.invariance import check_batch_invariance
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource

FAMILY = {
    "encoder": "pretrained-text-classifier",
    "vision": "pretrained-image-classifier",
    "decoder": "pretrained-decoder",
}
WAYS = [*product(("block", "lora", "bias"), ("task", "denoise", "mixed"))]


@pytest.fixture(scope="module", params=sorted(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model of two blocks of two layers."""
    where = tmp_path_factory.mktemp(request.param)
    convert(save(TINY[request.param].made(), where / "checkpoint"), 2, where / "converted")
    return where / "converted"


def settings_of(folder: Path, trains: str, objective: str) -> Any:
    kind = read_card(folder).kind
    own = {} if kind == "decoder" else {"classes": 3}
    length = {} if kind == "vision" else {"sequence_length": 12}
    raw = {"pretrained": str(folder), "trains": trains, "objective": objective, "lora_rank": 2}
    return family(FAMILY[kind]).settings.model_validate(raw | own | length)


class Lengths(FixedLosses):
    """Texts of random lengths, the first without a token."""

    def __init__(
        self, net: Denoiser, block: int, examples: tuple[Tensor, Tensor], draws: int, pad: int
    ) -> None:
        inputs = examples[0]
        if not inputs.is_floating_point():
            g = torch.Generator().manual_seed(5)
            lengths = torch.randint(inputs.shape[1] + 1, (len(inputs), 1), generator=g)
            lengths[0] = 0
            inputs = inputs.masked_fill(torch.arange(inputs.shape[1]) >= lengths, pad)
        super().__init__(net, block, (inputs, examples[1]), draws)


@pytest.mark.slow
@pytest.mark.parametrize(("trains", "objective"), WAYS)
def test_every_architectures_clipped_sums_equal_a_loop_over_examples(
    folder: Path, trains: str, objective: str
) -> None:
    """Oracle: one backward pass an example, in float64, texts of unequal lengths. Would catch a parameter that is
    used past its layer, a mask or a buffer that depends on the batch, and state that a call leaves for the next."""
    settings = settings_of(folder, trains, objective)
    variant = Variant(settings)
    for block in (0, 1):
        net = variant.model().double()
        active = net.freeze_all_but(block)
        losses = Lengths(net, block, variant.examples(5), 2, getattr(settings, "pad", 0) or 0)
        each = gradients_one_by_one(active, losses, examples=5, draws=2)
        with PerExampleClipping(active, max_grad_norm=0.5, examples_at_once=2) as clipping:
            found = clipping.sum(losses, examples=5, draws=2)
        expected = clipped_sum(each, flat(0.5, torch.float64))
        torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("trains", "objective"), WAYS)
def test_every_architectures_gradients_are_the_same_bits_in_every_batch(
    folder: Path, trains: str, objective: str
) -> None:
    """As a company tests its machine, with masks of all lengths. Would catch a kernel that treats rows by their
    place, or by what other rows' masks are like."""
    settings = settings_of(folder, trains, objective)
    source = CryptographicSource(Randomness.from_seed(0, "x"))
    for block in (0, 1):
        net = build_model(settings, NoiseSettings())
        active = net.freeze_all_but(block)
        before = {path: sha256_of(path) for path in folder.iterdir()}
        with batches.random_weights(net, source):
            losses = losses_of(net, block, settings, 64, source)
            with PerExampleClipping(active, max_grad_norm=1.0, examples_at_once=32) as clipping:
                check_batch_invariance(clipping, losses, draws=2)
        assert {path: sha256_of(path) for path in folder.iterdir()} == before


def losses_of(net: Denoiser, block: int, settings: Any, count: int, source: CryptographicSource) -> Any:
    examples = batches.random_examples(settings.kind, count, source)
    if getattr(settings, "pad", None) is not None:
        examples = batches._filled_up(examples, settings.pad, source)
    repeated = examples.targets.repeat_interleave(2, dim=0)
    draw = net.draw(block, repeated, source)

    def losses(places: Tensor) -> Tensor:
        rows = draws_of(places, 2)
        return BlockObjective().at(
            net, block, net.context(block, examples.inputs[places]), repeated[rows], draw[rows]
        )

    return losses
