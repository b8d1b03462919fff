"""Baselines and benches: what they are compared by is counted right, and each of them learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedblocks.blocks import Schedule
from fedblocks.experiments.baselines.diffusion_blocks import PublishedViT
from fedblocks.experiments.baselines.end_to_end import PlainViT
from fedblocks.experiments.baselines.forward_forward import ForwardForward, overlaid
from fedblocks.experiments.baselines.training import Fitted, Split, accuracy, fit, moved
from fedblocks.experiments.bench import block_memory, block_quality, block_step
from fedblocks.experiments.bench.image_sets import SETS, ImageSet
from fedblocks.experiments.memory import SavedForBackward, allocator_peak, training_memory

SIZES: dict[str, Any] = {
    "image_size": 8, "channels": 1, "patch_size": 4, "hidden_size": 32, "heads": 2, "classes": 4,
}  # fmt: skip


def prototypes(n: int = 160) -> Split:
    """Four classes, each a prototype and a little noise; the same images to train and to test."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(n // 4)
    images = torch.rand(4, 1, 8, 8, generator=g)[labels] + 0.1 * torch.randn(n, 1, 8, 8, generator=g)
    data = (images.clamp(0, 1), labels)
    return Split(data, data)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_checkpointing_gives_equal_gradients_and_needs_less_memory() -> None:
    """Would catch a recomputation that differs, or one that keeps what it should compute again."""
    torch.manual_seed(0)
    plain = PlainViT(**SIZES, layers=6)
    thrifty = copy.deepcopy(plain)
    thrifty.checkpointing = True
    images, labels = prototypes().train
    peaks, kept = [], []
    for network in (plain, thrifty):
        with SavedForBackward(network.parameters()) as saved:
            network.losses(images, labels).mean().backward()
        kept.append(saved.peak)
        network.zero_grad()
        peaks.append(allocator_peak(lambda n=network: n.losses(images, labels).mean().backward()))  # type: ignore[misc]
    for ours, theirs in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    assert kept[1] < kept[0] / 4
    assert peaks[1] < peaks[0] / 2


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "as published":
        return PublishedViT(**SIZES, layers=2, blocks=2, generator=generator())
    if kind == "forward-forward":
        return ForwardForward(PlainViT(**SIZES, layers=2), generator())
    return PlainViT(**SIZES, layers=2)


@pytest.mark.parametrize("kind", ["end to end", "forward-forward", "as published"])
def test_every_baseline_learns_prototypes(kind: str) -> None:
    """Would catch a baseline that is broken rather than worse."""
    schedule = Schedule(steps=120, batch_size=64, learning_rate=3e-3)
    net, data = network(kind), prototypes()
    losses: Any = net.losses
    fit(net, losses, data.batches(schedule, generator()), schedule)
    if isinstance(net, PublishedViT):  # its last block may copy a wrong z: judged by its first
        with torch.no_grad():
            found = net.chain(data.test[0])[0]
        assert accuracy(lambda images: found, data.test) > 0.6
    else:
        assert accuracy(net, data.test) > 0.9


def test_forward_forward_has_no_gradient_between_layers() -> None:
    """Would catch backpropagation: the last layer's goodness alone must reach that layer alone."""
    net = network("forward-forward")
    assert isinstance(net, ForwardForward)
    images, labels = prototypes().train
    net.goodness(overlaid(images, labels, 4))[-1].sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert reached
    assert all(name.startswith("network.layers.1.") for name in reached)


def test_the_label_is_written_over_the_first_pixels_and_nothing_else() -> None:
    images, labels = prototypes().train
    flat = overlaid(images, labels, 4).flatten(1)
    assert torch.equal(flat[:, :4].argmax(dim=1), labels)
    assert torch.equal(flat[:, 4:], images.flatten(1)[:, 4:])


def test_published_blocks_share_their_outer_parts() -> None:
    """Would catch private copies, which would make the published method better than it is."""
    net = network("as published")
    assert isinstance(net, PublishedViT)
    images, labels = prototypes().train
    for block in (0, 1):
        net.zero_grad()
        net.losses(images, labels).mean().backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None}
        layers = {name for name in reached if name.startswith("blocks.")}
        assert {name.split(".")[1] for name in layers} == {str(block)}
        assert {name.split(".")[0] for name in reached - layers} == {
            "patch", "position", "label", "noise", "norm", "head",
        }  # fmt: skip


def test_batches_pass_over_every_image_once_an_epoch() -> None:
    """Would catch batches that favour some images; 5 steps of 64 are 2 epochs of 160."""
    data = prototypes()
    marked = Split((torch.arange(160.0).view(-1, 1, 1, 1), data.train[1]), data.test)
    schedule = Schedule(steps=5, batch_size=64, learning_rate=1e-3)
    seen = torch.cat([x.flatten() for x, _ in marked.batches(schedule, generator())])
    assert torch.equal(seen[:160].sort().values, torch.arange(160.0))
    assert torch.equal(seen[160:].sort().values, torch.arange(160.0))


def test_moving_an_image_moves_its_pixels_and_no_other_image() -> None:
    images = torch.zeros(50, 2, 8, 8)
    images[:, :, 4, 4] = torch.arange(1.0, 51)[:, None]
    found = moved(images, 2, generator())
    assert torch.equal(found.flatten(2).amax(dim=2), images.flatten(2).amax(dim=2))
    places = found[:, 0].flatten(1).argmax(dim=1)
    assert set((places // 8).tolist()) == set((places % 8).tolist()) == {2, 3, 4, 5, 6}


def test_memory_by_part_of_a_linear_layer_is_known() -> None:
    """An oracle by hand: y = x W, with Adam; its input is all that the backward pass needs."""
    layer = nn.Linear(100, 10, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    x = torch.rand(50, 100)

    def step() -> None:
        layer(x).sum().backward()
        optimizer.step()

    found = training_memory(layer.parameters(), optimizer, step)
    weights = 4 * 100 * 10
    assert found["parameters"] == found["gradients"] == weights
    assert found["optimizer"] == 2 * weights + 4  # two moments and a step count
    assert found["activations"] == 4 * 50 * 100
    assert found["total"] == sum(
        found[part] for part in ("parameters", "gradients", "optimizer", "activations")
    )


def test_block_memory_keeps_its_bars_by_accounting_and_by_the_allocator() -> None:
    """Would catch other blocks left in memory; two ways of counting must agree to 5 points."""
    found = block_memory.measure(hidden_size=128, batch_size=4)
    for b in block_memory.CUTS:
        assert found[f"ratio_b{b}"] <= 1 / b + 0.05
        assert abs(found[f"ratio_b{b}"] - found[f"measured_ratio_b{b}"]) < 0.05
    whole = found["end_to_end_bytes"]
    assert whole["measured"] == pytest.approx(whole["total"], rel=0.25)


def test_block_step_is_timed_against_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a ratio the other way round, and a job that takes no step, or one of other layers."""
    stepped: list[int] = []

    def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        stepped.append(sum(p.numel() for p in parameters if p.grad is not None and p.dim() == 2))

    def timed(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
        assert list(jobs) == ["block", "plain"]
        for job in jobs.values():
            job()
        return {"block": 0.3, "plain": 0.2}

    monkeypatch.setattr(block_step, "median_seconds", timed)
    hook = register_optimizer_step_post_hook(count)
    try:
        found = block_step.measure(repeats=2, batch_size=2, layers=3, compiled=False)
    finally:
        hook.remove()
    assert (found["block_ms"], found["plain_ms"], found["ratio_to_plain"]) == (300, 200, 1.5)
    assert found["compiled_ratio_to_block"] is None
    block, plain = stepped
    layer = 12 * 128**2  # attention's four and the MLP's eight squares
    assert layer < plain < block < 3 * layer  # the block's own modulation comes on top, and no second layer


def test_block_step_measures() -> None:
    found = block_step.measure(repeats=2, batch_size=2, layers=3, compiled=False)
    assert found["ratio_to_plain"] == pytest.approx(found["block_ms"] / found["plain_ms"], rel=0.02)


def test_block_quality_reports_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a key that the command line reads and the bench no longer gives."""
    tiny = {name: Schedule(steps=2, batch_size=8, learning_rate=1e-3) for name in SETS}
    monkeypatch.setattr(block_quality, "SCHEDULES", tiny)
    sizes = SIZES | {"patch_size": 8, "hidden_size": 16, "classes": 10}
    monkeypatch.setattr(block_quality, "SETS", {n: lambda: ImageSet(small_split(), sizes) for n in SETS})
    found = block_quality.measure(seeds=2, others=True)
    for name in ("digits", "mnist"):
        for method in block_quality.METHODS | block_quality.OTHERS:
            share = 20 * 2 * found[f"{name}_{method}"]  # of 20 test images with each of two seeds
            assert share == pytest.approx(round(share), abs=40 * 5e-5)
            assert 0 <= found[f"{name}_{method}"] <= 1
            assert found[f"{name}_{method}_std"] >= 0
            assert found[f"{name}_{method}_seconds"] >= 0
            assert found[f"{name}_{method}_bytes"]["activations"] > 0
        assert len(found[f"{name}_accuracy_after_each_block"]) == 3
        assert found[f"{name}_accuracy_after_each_block"][-1] == found[f"{name}_accuracy"]
        assert len(found[f"{name}_accuracy_follows_wrong_z"]) == 3
        ours, whole = (found[f"{name}_{m}_bytes"]["optimizer"] for m in ("accuracy", "as_published"))
        assert ours < whole
    assert found["worst_chain_drop"] >= 0


def test_block_quality_averages_over_seeds_and_gives_the_worst_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """By methods of known results. Would catch a best block for the last, a mean of sets, a deviation of n - 1."""
    chains = {0: [0.5, 0.9, 0.7], 1: [0.2, 0.4, 0.5]}
    steps: dict[str, list[int]] = {}

    def method(name: str, seconds: float) -> block_quality.Method:
        def run(data: ImageSet, schedule: Schedule, seed: int) -> block_quality.Trained:
            steps.setdefault(name, []).append(schedule.steps)
            chain = chains[seed] if name == "ours" else [0.25]
            probes = {"follows_wrong_z": [seed, 0.0, 0.5]} if name == "ours" else {}
            return block_quality.Trained(chain, Fitted(seconds * (seed + 1), {"activations": 7}), probes)

        return run

    methods = {"accuracy": method("ours", 6.0), "end_to_end": method("plain", 4.0)}
    monkeypatch.setattr(block_quality, "METHODS", methods)
    monkeypatch.setattr(block_quality, "OTHERS", {block_quality.SAME_TIME: method("same time", 1.0)})
    monkeypatch.setattr(block_quality, "SETS", {"digits": lambda: None})
    schedule = Schedule(steps=10, batch_size=8, learning_rate=1e-3)
    monkeypatch.setattr(block_quality, "SCHEDULES", {"digits": schedule})
    found = block_quality.measure(seeds=2, others=True, sets=("digits",))
    assert (found["digits_accuracy"], found["digits_accuracy_std"]) == (0.6, 0.1)
    assert found["digits_accuracy_seconds"] == 9.0
    assert found["digits_accuracy_bytes"] == {"activations": 7}
    assert found["digits_accuracy_after_each_block"] == [0.35, 0.65, 0.6]
    assert found["digits_accuracy_follows_wrong_z"] == [0.5, 0.0, 0.5]
    assert (found["digits_end_to_end"], found["digits_end_to_end_std"]) == (0.25, 0.0)
    assert found["worst_chain_drop"] == 20.0
    assert found["digits_steps_per_layer"] == 10
    assert steps == {"ours": [10, 10], "plain": [10, 10], "same time": [15, 15]}


def small_split() -> Split:
    split: tuple[Tensor, Tensor] = SETS["digits"]().split.test
    part = (split[0][:20], split[1][:20])
    return Split(part, part)


def test_image_sets_have_a_fixed_test_fifth_of_every_class() -> None:
    """Would catch test images among the training ones, or a split that moves with the seed."""
    torch.manual_seed(1)
    digits = SETS["digits"]().split
    torch.manual_seed(2)
    assert torch.equal(digits.test[0], SETS["digits"]().split.test[0])
    for name, size in {"digits": 1797, "mnist": 5000}.items():
        found = SETS[name]().split
        assert len(found.test[1]) == round(0.2 * size + 0.1)
        assert len(found.train[1]) + len(found.test[1]) == size
        counts = found.test[1].bincount(minlength=10)
        assert counts.min() > 0.9 * len(found.test[1]) / 10
