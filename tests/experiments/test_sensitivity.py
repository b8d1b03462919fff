"""One example moves a clipped sum by at most the clip: the worst cases of `bench sensitivity`."""

from __future__ import annotations

import pytest
import torch

from fedblocks.blocks import build_model, families
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family_names
from fedblocks.client.policy import Policy
from fedblocks.client.training import train_block
from fedblocks.experiments.bench.sensitivity.arrangements import ARRANGEMENTS
from fedblocks.experiments.bench.sensitivity.cases import CLIPPINGS
from fedblocks.experiments.bench.sensitivity.families import (
    family_examples,
    values_of,
)
from fedblocks.experiments.bench.sensitivity.last_bit import READERS, last_bit
from fedblocks.experiments.bench.sensitivity.neighbours import movement
from fedblocks.experiments.bench.sensitivity.releases import RELEASED, Releases
from fedblocks.experiments.bench.sensitivity.sums import LAYERS, handing
from fedblocks.privacy.randomness import Randomness
from fedblocks.settings import Plan

ALL, ALL_SUMS = 2048, 1 << 16  # more than there are


@pytest.mark.parametrize("layer", LAYERS)
def test_no_arrangement_of_gradients_moves_a_sum_past_the_clip(layer: str) -> None:
    """36,385 examples in one pass. Would catch a sum in float32: it moved by 10.8 clips."""
    for name in ("below an edge", "random", "aligned"):
        table = ARRANGEMENTS[name](36_385)
        for order in (torch.arange(len(table)), table[:, 0].argsort()):
            assert movement(handing(layer, table), order, 0, at_once=ALL_SUMS) <= 1, name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reader", READERS)
def test_no_last_bit_becomes_a_direction(reader: str, threads: int) -> None:
    """Would catch passes whose shape follows the batch, and kernels to which a place matters: 257 clips."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        model = READERS[reader]()
        for n, at, rows in (
            (2, 0, 64),
            (4, 3, ALL),
            (11, 0, 64),
            (11, 10, 32),
            (129, 0, 64),
            (129, 64, ALL),
        ):
            assert last_bit(model, n, at, at_once=rows, tries=1) <= 1, (n, at, rows)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("family", family_names())
def test_every_family_with_large_weights_stays_within_the_clip(family: str, clipping: str) -> None:
    """Would catch an operation of some family that is not as the ones above: a generator of images moved by 2.2."""
    examples = family_examples(family, 65, scale=30.0, draws=3, interface=True)
    for n, at in ((2, 1), (5, 0), (65, 0)):
        assert movement(examples, torch.arange(n), at, at_once=64, clipping=clipping) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("reader", "n"), RELEASED)
def test_released_updates_of_neighbours_are_as_close_as_accounted(reader: str, n: int) -> None:
    """Would catch a sum that moves past the clip where it counts: in what `train_block` releases, noise included."""
    found = Releases(reader, n, noise_multiplier=4.0).verdict(400)
    assert 0.5 < found.epsilon < 1.5
    assert not found.rejected, found


@pytest.mark.parametrize("family", family_names())
def test_no_seed_of_32_bits_decides_a_release(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch diffusion noise found by trying all seeds: given it, 797 images moved by 28 clips.

    Neither a generator of PyTorch's own nor its default one may be drawn from.
    """
    settings, g = families.family(family).small_settings(), torch.Generator().manual_seed(0)
    plan = Plan.model_validate(
        {
            "run": "seeds", "model": settings.model_dump(), "noise": {},
            "training": {"rounds": 1, "sampling_rate": 1.0, "expected_batch_size": 9, "noise_draws": 2},
            "delta": 1e-5, "max_grad_norm": 1.0, "noise_multiplier": 1.0, "company_clip": 1.0,
            "secure_aggregation": {},
        }
    )  # fmt: skip
    policy = Policy(company="c", epsilon_ceiling=100, delta=1e-5, data=settings.kind)
    model, data = build_model(plan.model, plan.noise), Examples(*values_of(settings.kind, 9, g))

    class Forbidden:
        def __init__(self, *_: object) -> None:
            raise AssertionError("a generator of 32 bits of seed")

    monkeypatch.setattr(torch, "Generator", Forbidden)
    before = torch.get_rng_state()
    train_block(model, 0, data, plan, 3, Randomness.from_entropy(), policy)
    assert torch.equal(torch.get_rng_state(), before)
