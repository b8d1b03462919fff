"""Diagnoses of blocks against predictors whose behaviour is known."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from fedblocks.blocks import Denoiser, build_model, diagnose, metric_of, sample_chain
from fedblocks.blocks.denoiser import GaussianDenoiser, Metric
from fedblocks.blocks.diagnostics import BINS
from fedblocks.blocks.families import ModelSettings
from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.blocks.noise import LogNormalNoise, Partition, Seeded
from fedblocks.blocks.preconditioning import Preconditioning
from fedblocks.errors import InputError
from fedblocks.settings import NoiseSettings

SIZES: dict[str, Any] = {"hidden_size": 16, "layers": 2, "blocks": 2, "heads": 2}
VIT = ViTSettings(patch_size=4, **SIZES)
AR = ARLanguageModelSettings(tokenizer="text8", vocabulary=27, sequence_length=8, **SIZES)
# So little noise that z tells its target without a doubt.
QUIET = NoiseSettings(P_mean=-4.0, P_std=0.5, sigma_max=0.1)
EITHER = pytest.mark.parametrize("settings", [VIT, AR], ids=["vit", "ar-lm"])


def model(settings: ModelSettings, noise: NoiseSettings | None = None) -> Denoiser:
    torch.manual_seed(0)
    net = build_model(settings, noise or NoiseSettings(overlap=0.0))
    for p in net.parameters():  # small initial weights let z alone decide; move off them
        p.data += 0.5 * torch.randn_like(p)
    return net.requires_grad_(False).eval()


def examples(settings: ViTSettings | ARLanguageModelSettings, n: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    if isinstance(settings, ViTSettings):
        return torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)
    tokens = torch.randint(27, (n, 8), generator=g)
    return tokens, tokens


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@EITHER
def test_quality_in_the_chain_is_the_samplers(settings: Any) -> None:
    """Would catch another grid, another starting noise or a mix-up of blocks."""
    net, (inputs, targets) = model(settings), examples(settings)
    chain = sample_chain(net, inputs, targets, generator())
    found = diagnose(net, inputs, targets, generator())
    assert [d.block for d in found] == [0, 1]
    expected = [float(net.score(p, targets).double().mean()) for p in chain]
    assert [d.in_chain for d in found] == pytest.approx(expected)
    assert all(d.by_example for d in found)


@EITHER
def test_a_model_that_ignores_its_input_does_not_mind_other_inputs(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch other noise, or another z, in one of the two; the same model with its input does mind."""
    net, (inputs, targets) = model(settings), examples(settings)
    assert any(d.inputs_shuffled != d.with_z for d in diagnose(net, inputs, targets, generator()))
    inner = net.predict
    monkeypatch.setattr(net, "predict", lambda b, z, s, context: inner(b, z, s, torch.zeros_like(context)))
    for d in diagnose(net, inputs, targets, generator()):
        assert d.inputs_shuffled == d.with_z


@EITHER
def test_a_predictor_that_copies_z_follows_a_wrong_one(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a z that is not made from the other example's target, and labels that agree by chance."""
    net, (inputs, targets) = model(settings, QUIET), examples(settings)
    inner = net.predict
    monkeypatch.setattr(net, "predict", lambda b, z, s, c: net.evidence(z, s) + 0 * inner(b, z, s, c))
    for d in diagnose(net, inputs, targets, generator()):
        assert d.follows_wrong_z == 1
        assert d.inputs_shuffled == d.with_z
        assert d.without_z != pytest.approx(d.with_z)


def test_a_predictor_that_reads_its_input_alone_does_not_need_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch inputs that stay in place when shuffled, or are shuffled where they should not be."""
    net, (_, labels) = model(VIT, QUIET), examples(VIT)
    images = (labels.float() / 10).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    inner, embed = net.predict, net.embed
    monkeypatch.setattr(net, "embed", lambda b, x: embed(b, x) * 0 + 10 * x[:, :, :1, :1].flatten(2))

    def predict(b: int, z: Tensor, s: Tensor, context: Tensor) -> Tensor:
        told = context[:, 0, 0].round().long()
        return 50.0 * nn.functional.one_hot(told, 10) + 0 * inner(b, z, s, context)

    monkeypatch.setattr(net, "predict", predict)
    for d in diagnose(net, images, labels, generator()):
        assert d.in_chain == d.with_z == d.without_z == 1
        assert d.follows_wrong_z == 0
        assert d.inputs_shuffled is not None
        assert d.inputs_shuffled < 0.3


@EITHER
def test_bins_tile_the_interval_and_their_mean_is_the_blocks_loss(settings: Any) -> None:
    """Would catch bins of unequal mass, levels of another block, or a loss weighted by noise."""
    net, (inputs, targets) = model(settings), examples(settings)
    for d in diagnose(net, inputs, targets, generator()):
        low, high = net.partition.interval(d.block)
        edges = [(b.high, b.low) for b in d.by_noise]
        assert len(edges) == BINS
        assert edges[0][0] == pytest.approx(high)
        assert edges[-1][1] == pytest.approx(low)
        assert all(before[1] == after[0] for before, after in pairwise(edges))
        many = torch.arange(len(targets)).repeat(40)
        draw = net.draw(d.block, targets[many], Seeded(generator(5)))
        z = net.corrupt(net.clean(targets[many]), draw)
        losses = net.loss(
            net.predict(d.block, z, draw.level, net.context(d.block, inputs[many])), targets[many]
        )
        assert sum(b.loss for b in d.by_noise) / BINS == pytest.approx(float(losses.mean()), rel=0.1)
        assert all(b.gradient_norm > 0 for b in d.by_noise)


def test_a_diagnosis_leaves_the_model_as_it_was_and_goes_into_json() -> None:
    """Would catch a frozen model left trainable, gradients left behind, or values JSON does not know."""
    net, (inputs, targets) = model(VIT), examples(VIT)
    net.blocks[0].requires_grad_(True)
    before = [p.requires_grad for p in net.parameters()]
    found = diagnose(net, inputs, targets, generator())
    assert [p.requires_grad for p in net.parameters()] == before
    assert all(p.grad is None for p in net.parameters())
    back = json.loads(json.dumps([d.to_json() for d in found]))
    assert back[1]["without_z"] == found[1].without_z
    assert back[1]["by_noise"][0]["high"] == found[1].by_noise[0].high
    assert found == diagnose(net, inputs, targets, generator())


def test_a_metric_of_sets_is_kept_apart_from_scores_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a Frechet distance averaged over examples, or compared with their scores."""
    net, (inputs, targets) = model(VIT), examples(VIT)
    plain = diagnose(net, inputs, targets, generator())
    assert plain[0].by_example
    monkeypatch.setattr(net, "chain_quality", lambda x, y, g: [40.0, 30.0])
    monkeypatch.setattr(type(net), "metric_by_example", False)
    found = diagnose(net, inputs, targets, generator())
    assert [d.in_chain for d in found] == [40.0, 30.0]
    assert not any(d.by_example for d in found)
    assert [d.with_z for d in found] == [d.with_z for d in plain]


OF_SIZE: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 4},
    "dit": {"patch_size": 4},
    "ar-lm": {"sequence_length": 8},
    "masked-lm": {"sequence_length": 8},
    "recurrent-lm": {"sequence_length": 8, "layers": 4, "blocks": 1},
    "forecaster": {"context_length": 16, "horizon": 8, "patch_size": 4},
}


@pytest.mark.parametrize("family", OF_SIZE)
def test_every_family_is_diagnosed_in_its_own_shapes(family: str) -> None:
    """Would catch a family whose z, context or prediction is not shaped as others' are."""
    settings = TypeAdapter(ModelSettings).validate_python({"family": family} | SIZES | OF_SIZE[family])
    kind, g = settings.kind, torch.Generator().manual_seed(0)

    def values(shape: tuple[int, ...], classes: int | None) -> Tensor:
        if classes is None:
            return torch.rand(10, *shape, generator=g)
        return torch.randint(classes, (10, *shape), generator=g)

    net = model(settings)
    assert net.metric_by_example == (type(net).chain_quality is Denoiser.chain_quality)
    inputs, targets = values(kind.inputs, kind.input_classes), values(kind.targets, kind.target_classes)
    found = diagnose(net, inputs, targets, generator())
    assert len(found) == settings.blocks
    for d in found:
        assert all(map(math.isfinite, (d.in_chain, d.with_z, d.without_z)))
        assert 0 <= d.follows_wrong_z <= 1
        assert (d.inputs_shuffled is None) == (family == "masked-lm")
        assert all(part.loss >= 0 and part.gradient_norm > 0 for part in d.by_noise)


def test_one_example_cannot_be_exchanged() -> None:
    """Would catch a single example that stands in for its own other."""
    inputs, targets = examples(VIT, 1)
    with pytest.raises(InputError, match="at least 2"):
        diagnose(model(VIT), inputs, targets, generator())


def test_the_metric_is_known_from_settings_alone() -> None:
    """Would catch a family judged by another's metric or in the wrong direction."""
    assert metric_of(VIT) == Metric("accuracy", True, "share")
    assert metric_of(AR) == Metric("bits_per_character", False, "bits")


class Real(GaussianDenoiser):
    """Denoises real targets (N, 3); copies z where `copies`, else returns its input; reads it if `reads`."""

    metric = Metric("error", False, "number")

    def __init__(self, copies: bool, reads: bool = True) -> None:
        noise = LogNormalNoise(P_mean=-4.0, P_std=0.5, sigma_max=0.1)
        super().__init__(Partition.equi_probability(noise, 2), Preconditioning(), "raw")
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.copies, self.reads = copies, reads

    def contexts(self, inputs: Tensor) -> list[Tensor]:
        return [self.embed(b, inputs) for b in range(2)]

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        return inputs[:, None] if self.reads else inputs[:, None][:, :0]

    def clean(self, targets: Tensor) -> Tensor:
        return targets

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return (z if self.copies else context[:, 0]) + 0 * self.blocks[block](z)

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction - targets).square().mean(dim=1)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self.loss(prediction, targets).sqrt()


def test_real_targets_are_followed_by_distance() -> None:
    """Would catch an argmax over values, and a shuffle of inputs that are not read."""
    targets = torch.randn(50, 3, generator=generator(0))
    for d in diagnose(Real(copies=True, reads=False), targets, targets, generator()):
        assert d.follows_wrong_z == 1
        assert d.inputs_shuffled is None
    for d in diagnose(Real(copies=False), targets, targets, generator()):
        assert d.follows_wrong_z == 0
        assert d.in_chain == d.without_z == 0
        assert d.inputs_shuffled is not None
        assert d.inputs_shuffled > 1
