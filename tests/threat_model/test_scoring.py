"""From reconstructions to results."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedblocks.blocks.taps import Field
from fedblocks.threat_model.scoring import Attacked

IMAGE = Field(name="image", what="image", shape=(1, 4, 4), bounds=(0.0, 1.0))


def attacked(released: torch.Tensor, originals: torch.Tensor) -> Attacked:
    return Attacked(
        attack="linear-span", adversary="coordinator", view="the opened sum", block=0, of=IMAGE,
        originals=originals, released=released, prior=torch.zeros_like(originals), control=originals,
    )  # fmt: skip


def test_what_is_rebuilt_without_the_release_too_is_not_found() -> None:
    """Would catch a blank image, which is the prior's own guess, reported as a leak; and a leak beside it missed."""
    originals = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    originals[:3] = 0.0
    blind = attacked(torch.zeros_like(originals), originals).results()
    assert [each.outcome for each in blind] == ["not found", "not found"]
    assert blind[0].value is not None
    assert blind[0].value.value == 0.3
    one = torch.zeros_like(originals)
    one[7] = originals[7]
    assert [each.outcome for each in attacked(one, originals).results()] == ["found", "found"]


def test_a_control_succeeds_if_its_share_is_told_from_that_of_the_view() -> None:
    """Would catch an attack on many examples refused as failed that rebuilds a third of them, and one that fails."""
    originals = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(0.01)

    def judged(rebuilt: int) -> str:
        control = torch.zeros_like(originals)
        control[:rebuilt] = originals[:rebuilt]
        return replace(attacked(torch.zeros_like(originals), originals), control=control).results()[0].outcome

    assert judged(20) == "not found"  # [22%, 47%] against at most 6%
    assert judged(4) == "inconclusive"  # [2%, 16%]
