"""The groups of a model's tensors: what travels, what is trained, and what stays with its company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.families import Variant
from torch import nn

from fedblocks.blocks import (
    BlockObjective,
    LogNormalNoise,
    Partition,
    Seeded,
    digest,
    load_state,
    save_state,
    split,
)
from fedblocks.blocks.families.vit import ViTClassifier
from fedblocks.blocks.groups import groups_of
from fedblocks.blocks.pretrained.settings import PretrainedSettings
from fedblocks.blocks.state import check_part, merge
from fedblocks.blocks.state_bytes import from_bytes, to_bytes
from fedblocks.blocks.transformer import Block
from fedblocks.errors import RunError

MINE = "blocks.0.adapter.weight"


class AdaptedBlock(Block):
    """A block with an adapter of each company's own."""

    def __init__(self, block: Block, shape: int) -> None:
        nn.Module.__init__(self)
        self.interface, self.layers, self.checkpointing = block.interface, block.layers, False
        self.adapter = nn.Linear(shape, shape, bias=False)

    def personal_modules(self) -> Sequence[nn.Module]:
        return (self.adapter,)

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        clean, z = super().forward(*args, **kwargs)
        return clean, z + self.adapter(z)


def adapted(blocks: int = 2) -> ViTClassifier:
    torch.manual_seed(0)
    partition = Partition.equi_probability(LogNormalNoise(), blocks)
    net = ViTClassifier(partition=partition, hidden_size=16, layers=blocks, patch_size=4)
    net.blocks = nn.ModuleList(AdaptedBlock(net.part(b), 16) for b in range(blocks))
    return net


def test_every_tensor_of_every_family_is_in_one_group(variant: Variant) -> None:
    """Oracle: the names, which are not asked. Would catch what travels, or is trained, other than before."""
    net = variant.model()
    state, pretrained = split(net), isinstance(variant.settings, PretrainedSettings)
    common = net.groups(None)
    assert list(common) == [n for n in net.state_dict() if not n.startswith("blocks.")]
    assert set(common.values()) <= ({"pinned"} if pretrained else {"shared"})
    assert list(state.shared) == ([] if pretrained else list(common))
    for b, part in enumerate(state.blocks):
        assert list(net.groups(b)) == [n for n in net.state_dict() if n.startswith(f"blocks.{b}.")]
        pinned = {n for n, group in net.groups(b).items() if group == "pinned"}
        assert all(".layers." in name for name in pinned)
        assert bool(pinned) <= pretrained
        assert list(part) == [n for n in net.groups(b) if n not in pinned]
        assert {net.groups(b, interface=True)[name] for name in part} == {"trained"}
        for name in part:
            group = net.groups(b, interface=False)[name]
            assert group == ("frozen" if name.startswith(f"blocks.{b}.interface.") else "trained")
        for interface in (False, True):
            wanted = [n for n in sorted(part) if interface or not n.startswith(f"blocks.{b}.interface.")]
            assert [f"blocks.{b}.{name}" for name in net.trainable(b, interface)] == wanted


def test_a_personal_tensor_is_in_no_state_that_travels(tmp_path) -> None:  # type: ignore[no-untyped-def]
    net = adapted()
    assert net.groups(0)[MINE] == "personal"
    state = split(net)
    assert not [name for part in (state.shared, *state.blocks) for name in part if "adapter" in name]
    assert len(state.blocks[0]) == len(net.groups(0)) - 1
    save_state(state, tmp_path)
    held = load_state(tmp_path).blocks[0]
    assert MINE not in held
    assert MINE not in from_bytes(to_bytes(held))
    check_part(net, held, 0)
    before = digest(*split(net).blocks)
    net.get_parameter(MINE).data += 1
    assert digest(*split(net).blocks) == before


def test_a_state_that_brings_a_personal_tensor_is_refused() -> None:
    """Would catch a coordinator that puts a company's own tensors in place of what it has learnt."""
    net = adapted()
    kept = net.get_parameter(MINE).detach().clone()
    foreign = split(net).blocks[0] | {MINE: torch.zeros(16, 16)}
    with pytest.raises(RunError, match=MINE):
        check_part(net, foreign, 0)
    with pytest.raises(RunError, match=MINE):
        merge(net, foreign)
    assert torch.equal(net.get_parameter(MINE), kept)


@pytest.mark.parametrize("interface", [False, True])
def test_a_personal_tensor_is_in_no_update(interface: bool) -> None:
    net = adapted()
    assert "adapter.weight" not in net.trainable(0, interface)
    active = net.freeze_all_but(0, interface)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    source = Seeded(torch.Generator().manual_seed(0))
    BlockObjective()(net, block=0, inputs=x, targets=y, source=source).sum().backward()
    moved = {name for name, p in active.named_parameters() if p.grad is not None}
    assert moved == set(net.trainable(0, interface))


def test_a_block_that_declares_nothing_is_trained_but_for_its_buffers() -> None:
    groups = groups_of(nn.BatchNorm1d(3), interface=False)
    assert groups == {
        "weight": "trained", "bias": "trained", "running_mean": "frozen", "running_var": "frozen",
        "num_batches_tracked": "frozen",
    }  # fmt: skip


def test_a_name_says_nothing() -> None:
    """Would catch a rule that goes by how a module is called."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.interface = nn.Linear(2, 2)
            self.personal = nn.Linear(2, 2)

    assert set(groups_of(Named(), interface=False).values()) == {"trained"}
