"""An example's gradient has the same bits in whatever company it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.private_training import FAMILIES, setting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedblocks.blocks import build_model
from fedblocks.blocks.families.pretrained_decoder import PretrainedDecoderSettings
from fedblocks.blocks.pretrained.small import random_model
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client import batches
from fedblocks.errors import PrivacyError
from fedblocks.privacy.clipping import PerExampleClipping, pass_size
from fedblocks.privacy.invariance import check_batch_invariance
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource

CLIPPINGS = ("flat", "per-layer", "automatic")


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_gradients_are_the_same_wherever_an_example_stands(family: str, size: int) -> None:
    """Would catch a kernel, a layer or a book-keeping step that treats rows by their place or their neighbours."""
    s = setting(family)
    active = s.model.freeze_all_but(0)
    with PerExampleClipping(active, max_grad_norm=1.0, examples_at_once=size) as clipping:
        check_batch_invariance(clipping, s.losses(2 * size), draws=2)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_examples_part_of_the_sum_is_the_same_for_every_number_of_examples(
    family: str, clipping: str
) -> None:
    """Would catch passes whose shape follows the batch: with one example more, all others changed by a last bit.

    The sum of n examples of which all but one are the same shows the one's contribution at every size and place.
    """
    s = setting(family)
    active = s.model.freeze_all_but(0)
    losses = s.losses(40)
    with PerExampleClipping(
        active,
        max_grad_norm=1.0,
        clipping=clipping,
        examples_at_once=16,  # type: ignore[arg-type]
    ) as clip:

        def alone(place: int, n: int) -> Tensor:
            """Example 7 at `place` of n; the others are in the pass, and weighed with zero afterwards."""
            order = torch.tensor([*range(8, 8 + place), 7, *range(8 + place, 7 + n)])
            found = clip.gradients(losses, padded(order, place), draws=2)
            at = place % 16
            return torch.cat([values[at].double().flatten() for values in found.values()])

        def padded(order: Tensor, place: int) -> Tensor:
            start = place - place % 16
            within = order[start : start + 16]
            return torch.cat([within, within[:1].expand(16 - len(within))])

        expected = alone(0, 1)
        for n, place in ((2, 1), (10, 3), (11, 10), (15, 0), (16, 15), (17, 16), (30, 20)):
            assert torch.equal(alone(place, n), expected), (n, place)


def test_a_machine_on_which_the_place_matters_is_refused_by_name() -> None:
    """The control: would catch a check that sees nothing, and passes of another shape for the last examples."""

    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    x, bit = torch.randn(64, 6), torch.ones(32, 1)
    bit[3] += 2.0**-22  # as a kernel's last rows may be rounded in another way

    def losses(places: Tensor) -> Tensor:
        out: Tensor = net[2](net[1](net[0](x[places]) * bit))
        return out.square().sum(dim=1)

    with (
        PerExampleClipping(net, max_grad_norm=1.0, examples_at_once=32) as clipping,
        pytest.raises(PrivacyError, match=r"place in a batch.*device=cpu"),
    ):
        check_batch_invariance(clipping, losses)


def test_a_machine_on_which_companions_matter_is_refused() -> None:
    """The control: batch statistics tie examples together."""
    net, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), torch.randn(64, 6)

    def losses(places: Tensor) -> Tensor:
        h = net[0](x[places])
        return net[1](h - 1e-6 * h.mean()).square().sum(dim=1)

    with (
        PerExampleClipping(net, max_grad_norm=1.0, examples_at_once=32) as clipping,
        pytest.raises(PrivacyError, match=r"shares its batch|place|full"),
    ):
        check_batch_invariance(clipping, losses)


@pytest.mark.parametrize(("size", "width"), [(16, 7), (32, 7), (16, 32), (4, 32)])
def test_a_shape_that_leaves_values_over_is_refused(size: int, width: int) -> None:
    """The attack: the last values of a tensor are rounded by other code, for one argument of SiLU in thirty.

    Would catch a check that leaves that to the luck of a draw: it passed, and releases moved by three clips.
    """
    net, x = nn.Sequential(nn.Linear(6, width), nn.SiLU(), nn.Linear(width, 1)), torch.randn(2 * size, 6)

    def losses(places: Tensor) -> Tensor:
        out: Tensor = net(x[places])
        return out[:, 0]

    with PerExampleClipping(net, max_grad_norm=1.0, examples_at_once=size) as clipping:
        if size * width % 32 == 0:
            check_batch_invariance(clipping, losses)
            return
        for _ in range(20):
            with pytest.raises(PrivacyError, match="multiple of 32"):
                check_batch_invariance(clipping, losses)


def test_training_asks_the_machine_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a check that is never made, or that is made on the company's own examples."""
    s = setting("vit")
    asked: list[object] = []
    monkeypatch.setattr(batches, "_checked", {})
    monkeypatch.setattr(batches, "check_batch_invariance", lambda *a, **k: asked.append(k))
    before = {name: p.detach().clone() for name, p in s.model.named_parameters()}
    size = batches.examples_at_once(s.model, 0, s.plan, s.policy)
    assert size == pass_size(20)
    assert batches.examples_at_once(s.model, 0, s.plan, s.policy) == size
    assert len(asked) == 1
    assert all(torch.equal(p, before[name]) for name, p in s.model.named_parameters())


class _Made(TorchDispatchMode):
    """Counts the bytes of all tensors in single precision that operations make, views apart."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if (
            isinstance(out, Tensor)
            and out.dtype == torch.float32
            and out.untyped_storage().data_ptr() not in known
        ):
            self.bytes += out.nbytes
        return out


def test_a_pretrained_models_weights_are_all_replaced_in_little_memory() -> None:
    """What is pinned is most of a model, and may come from whoever wrote the plan. Would catch weights that stay as
    they are, copies of them all, equal weights in two layers, and a model that is another one afterwards."""
    folder = random_model(
        "decoder", layers=12, blocks=2, hidden_size=64, heads=2, intermediate_size=192, positions=16
    )
    settings = PretrainedDecoderSettings.model_validate({"pretrained": str(folder), "sequence_length": 8})
    model = build_model(settings, NoiseSettings())
    model.freeze_all_but(1)
    own = {name: (p.detach().clone(), p.data_ptr()) for name, p in model.named_parameters()}
    total = sum(p.nbytes for p in model.parameters())
    maps = [p for p in model.parameters() if p.dim() == 2]
    with _Made() as made, batches.random_weights(model, CryptographicSource(Randomness.from_entropy())):
        assert 0 < made.bytes < total / 4
        assert all(not torch.equal(p, own[name][0]) for name, p in model.named_parameters())
        assert len({tuple(p.flatten()[:9].tolist()) for p in maps}) == len(maps)
        assert all(0.6 < float(p.detach().std()) * p.shape[1] ** 0.5 < 1.6 for p in maps)
        pinned = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
        assert all(p.data_ptr() % 64 == own[name][1] % 64 for name, p in pinned)
    assert all(torch.equal(p, own[name][0]) for name, p in model.named_parameters())
    assert all(p.data_ptr() == own[name][1] for name, p in model.named_parameters())


def test_the_size_of_a_pass_comes_from_public_numbers_alone() -> None:
    """Would catch a pass as large as the batch, or larger than the memory that the policy grants."""
    assert [pass_size(b) for b in (1, 20, 80, 128, 400)] == [32, 32, 96, 96, 128]
    assert pass_size(400, 70) == 64
    assert pass_size(400, 20) == 16
    assert pass_size(400, 1) == 1
