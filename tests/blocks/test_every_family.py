"""What holds for every model family: independence of blocks, clipping of its layers, and its state."""

from __future__ import annotations

import pytest
import torch
from support.clipping_loop import RULES, clipped_sum, gradients_one_by_one, norm_of
from support.families import VARIANTS, FixedLosses, Variant, block_losses, gradient_reaches
from support.places import only

from fedblocks.blocks import (
    BlockObjective,
    block_parameters,
    digest,
    load_state,
    merge,
    sample_chain,
    save_state,
    split,
)
from fedblocks.blocks.denoiser import GaussianDenoiser
from fedblocks.blocks.families import family_names
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.pretrained.settings import PretrainedSettings
from fedblocks.blocks.state_bytes import from_bytes, to_bytes
from fedblocks.privacy.clipping import PerExampleClipping, lowered


def test_every_family_is_looked_at() -> None:
    """Would catch a family or a kind of features that is refused by mistake, and so not looked at below."""
    assert {v.settings.family for v in VARIANTS} == set(family_names())
    own = [name for name in family_names() if not name.startswith("pretrained-")]
    assert all(f"{name}-raw" in map(str, VARIANTS) for name in own)
    pretrained = [v.settings for v in VARIANTS if isinstance(v.settings, PretrainedSettings)]
    assert {s.objective for s in pretrained} == {"task", "denoise", "mixed"}
    assert {s.trains for s in pretrained} == {"block", "lora", "bias"}
    assert {"vit-prefix", "ar-lm-prefix", "forecaster-prefix"} <= set(map(str, VARIANTS))
    assert {v.settings.family for v in VARIANTS if v.settings.blocks == 1} <= {"recurrent-lm"}


def test_a_blocks_loss_has_no_gradient_path_to_any_other_block(variant: Variant) -> None:
    """Would catch a shared activation or parameter, and a part of the block that its loss never reaches."""
    if isinstance(variant.settings, PretrainedSettings):
        pytest.skip("blocks of a pretrained model share its trunk, which never trains")
    for block in range(variant.settings.blocks):
        net = variant.model()
        net.requires_grad_(True)
        block_losses(net, block, *variant.examples(12)).sum().backward()
        own = {name for name, _ in net.named_parameters() if name.startswith(f"blocks.{block}.")}
        assert gradient_reaches(net) == own


@pytest.mark.parametrize("interface", [True, False])
def test_frozen_training_leaves_gradients_on_what_is_trained_only(variant: Variant, interface: bool) -> None:
    """Would catch dead weights too, to which private training would add noise for nothing."""
    for block in range(variant.settings.blocks):
        net = variant.model()
        net.freeze_all_but(block, interface)
        block_losses(net, block, *variant.examples(12)).sum().backward()
        pinned = {name for name, group in net.groups(block).items() if group == "pinned"}
        own = {name for name, _ in net.named_parameters() if name.startswith(f"blocks.{block}.")} - pinned
        assert gradient_reaches(net) == {name for name in own if interface or ".interface." not in name}
        assert gradient_reaches(net) == {f"blocks.{block}.{n}" for n in net.trainable(block, interface)}


@pytest.mark.parametrize(
    ("draws", "at_once", "precision", "interface"),
    [
        (1, 100, torch.float64, True),
        (3, 100, torch.float64, True),
        (3, 2, torch.float64, True),
        (2, 3, torch.float32, True),
        (3, 2, torch.float64, False),
    ],
)
def test_clipped_sums_equal_a_loop_over_examples(
    variant: Variant, draws: int, at_once: int, precision: torch.dtype, interface: bool
) -> None:
    """Oracle: one backward pass an example. Would catch a layer that mixes examples or draws, or lost passes.

    Bounds: all are clipped, some are, none is. In float32 norms are raised by what rounding may hide.
    """
    examples = 5
    for block in sorted({0, variant.settings.blocks - 1}):
        net = variant.model().to(precision)
        active = net.freeze_all_but(block, interface)
        losses = FixedLosses(net, block, variant.examples(examples), draws)
        gradients = gradients_one_by_one(active, losses, examples=examples, draws=draws)
        norms = sorted(norm_of(g) for g in gradients)
        least = next(
            norm for norm in norms if norm > 0
        )  # a text none of whose tokens is masked has no gradient
        bounds = (least / 10, (norms[2] + norms[3]) / 2, 1e3 * norms[-1])
        for clipping, rule in RULES.items():
            for bound in bounds if clipping != "automatic" else bounds[1:2]:  # there it is a factor, no more
                with PerExampleClipping(
                    active,
                    max_grad_norm=bound,
                    clipping=clipping,
                    examples_at_once=at_once,
                ) as clipper:
                    found = clipper.sum(losses, examples=examples, draws=draws)
                expected = clipped_sum(gradients, rule(bound, precision))
                relative, absolute = (1e-9, 1e-12) if precision == torch.float64 else (1e-4, 1e-5)
                size = bound if clipping == "automatic" else min(bound, norms[-1])
                torch.testing.assert_close(found.vector, expected, rtol=relative, atol=absolute * size)
                assert found.sensitivity == bound
                assert found.within == sum(norm <= bound for norm in norms)


@pytest.mark.parametrize("interface", [True, False])
def test_sums_equal_those_of_opacus_hooks(variant: Variant, interface: bool) -> None:
    """Oracle: an independent library on a whole block."""
    from opacus import GradSampleModule

    n, block = 5, variant.settings.blocks - 1
    net = variant.model()
    losses = FixedLosses(net, block, variant.examples(n), draws=1)
    active = net.freeze_all_but(block, interface).train()
    hooks = GradSampleModule(active, loss_reduction="sum")
    losses(torch.arange(n)).sum().backward()
    g = torch.cat([p.grad_sample.reshape(n, -1) for _, p in block_parameters(active)], dim=1)
    hooks.to_standard_module()
    norms = g.norm(dim=1)
    for bound in (0.1 * float(norms[norms > 0].min()), 1.01 * float(norms[norms > 0].median())):
        expected = ((lowered(bound) / norms).clamp(max=1)[:, None] * g).sum(0)
        with PerExampleClipping(active, max_grad_norm=bound) as clipping:
            total = clipping.sum(losses, examples=n)
        torch.testing.assert_close(total.vector.float(), expected, rtol=1e-4, atol=2e-6 * bound)


def test_draws_of_one_example_share_one_context(variant: Variant) -> None:
    """Would catch draws mixed up between examples: m draws of one example equal m single ones."""
    net, (inputs, targets) = variant.model(), variant.examples(5)
    contexts = net.contexts(inputs)
    for block in range(variant.settings.blocks):
        repeated = targets.repeat_interleave(3, dim=0)
        draw = net.draw(block, repeated, Seeded(torch.Generator().manual_seed(0)))
        objective, context = BlockObjective(), net.context(block, inputs)
        together = objective.at(net, block, context, repeated, draw)
        one_by_one = net.context(block, inputs.repeat_interleave(3, dim=0))
        torch.testing.assert_close(together, objective.at(net, block, one_by_one, repeated, draw))
        assert torch.equal(contexts[block], context)


def test_prefix_features_reach_the_next_block_and_raw_ones_do_not(variant: Variant) -> None:
    """Would catch a prefix that is ignored, and raw blocks that depend on each other."""
    if variant.settings.blocks == 1:
        pytest.skip("one block")
    net, (inputs, _) = variant.model(), variant.examples(5)
    before = net.context(1, inputs)
    for p in net.blocks[0].parameters():
        p.data += 0.1 * torch.randn_like(p)
    assert torch.equal(before, net.context(1, inputs)) == (variant.settings.features == "raw")


def test_the_loss_of_an_example_is_its_own_times_its_weight(variant: Variant) -> None:
    """Would catch the published broadcast, (N) times (N, 1), which weights by the batch's mean."""
    net, (inputs, targets) = variant.model(), variant.examples(6)
    for block in range(variant.settings.blocks):
        draw = net.draw(block, targets, Seeded(torch.Generator().manual_seed(1)))
        context = net.context(block, inputs)
        plain = BlockObjective(weight="unit").at(net, block, context, targets, draw)
        weighted = BlockObjective(weight="edm").at(net, block, context, targets, draw)
        assert weighted.shape == (6,)
        if isinstance(net, GaussianDenoiser):
            torch.testing.assert_close(weighted / plain, net.preconditioning.weight(draw.level))
        for i in range(6):
            one = BlockObjective(weight="edm").at(
                net, block, context[i : i + 1], targets[i : i + 1], draw[only(i)]
            )
            torch.testing.assert_close(one, weighted[i : i + 1], rtol=1e-4, atol=1e-5)


def test_chain_quality_is_a_function_of_model_examples_and_seed(variant: Variant) -> None:
    net, (inputs, targets) = variant.model().requires_grad_(False), variant.examples(20)
    found = net.chain_quality(inputs, targets, torch.Generator().manual_seed(3))
    assert len(found) == variant.settings.blocks
    assert found == net.chain_quality(inputs, targets, torch.Generator().manual_seed(3))
    if net.metric_by_example:
        chain = sample_chain(net, inputs, targets, torch.Generator().manual_seed(3))
        expected = [float(net.score(prediction, targets).double().mean()) for prediction in chain]
        assert found == pytest.approx(expected)


def test_split_covers_the_state_exactly_once_and_merges_back(variant: Variant) -> None:
    for cut in variant.cuts():
        net, other = cut.model(), cut.model(seed=1)
        state = split(net)
        assert len(state.blocks) == cut.settings.blocks
        names = [name for part in (state.shared, *state.blocks) for name in part]
        pinned = {
            n for b in (None, *range(len(net.blocks))) for n, g in net.groups(b).items() if g == "pinned"
        }
        assert sorted(names) == sorted(set(net.state_dict()) - pinned)
        assert len(names) == len(set(names))
        assert digest(*split(other).blocks) != digest(*state.blocks)
        merge(other, state.shared, *state.blocks)
        for name in names:
            assert torch.equal(other.state_dict()[name], net.state_dict()[name])


def test_state_survives_disk_and_wire_and_its_digest_tells_changes(variant: Variant, tmp_path) -> None:  # type: ignore[no-untyped-def]
    state = split(variant.model())
    save_state(state, tmp_path)
    read = load_state(tmp_path)
    sent = [from_bytes(to_bytes(part)) for part in (state.shared, *state.blocks)]
    whole = digest(state.shared, *state.blocks)
    assert digest(read.shared, *read.blocks) == digest(*sent) == whole
    for part in read.blocks:
        value = next(iter(part.values())).view(-1)
        kept = value[0].clone()
        value[0] += 1e-3
        assert digest(*read.blocks) != digest(*state.blocks)
        value[0] = kept
    assert digest(*read.blocks) == digest(*state.blocks)
