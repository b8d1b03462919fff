"""The end-to-end language models that the blocks are compared with: causal, and sound to train."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedblocks.blocks import Schedule
from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.blocks.families.recurrent_lm import RecurrentLanguageModelSettings
from fedblocks.experiments.baselines.language import Llama, LoopedLlama, train_end_to_end

LENGTH = 8
PLAIN = ARLanguageModelSettings(hidden_size=16, layers=6, heads=2, sequence_length=LENGTH)
LOOPED = RecurrentLanguageModelSettings(
    hidden_size=16, layers=8, heads=2, recurrences=6, sequence_length=LENGTH
)


def build(kind: str) -> Llama:
    torch.manual_seed(0)
    return LoopedLlama(LOOPED) if kind == "looped" else Llama(PLAIN, PLAIN.layers)


def text(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(97, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["plain", "looped"])
def test_a_prediction_sees_the_past_alone(kind: str) -> None:
    """Would catch a baseline that cheats, or that is blind to some of its past."""
    net, tokens = build(kind), text()
    with torch.no_grad():
        before = net(tokens)
        for t in range(LENGTH):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 97
            differs = (net(changed) - before).abs().amax(dim=(0, 2)) > 1e-5
            assert differs.tolist() == [False] * (t + 1) + [True] * (LENGTH - t - 1)


@pytest.mark.parametrize("kind", ["plain", "looped"])
def test_gradients_are_of_a_sound_size_and_training_learns(kind: str) -> None:
    """Would catch a first position of zeros, whose normalisation blows gradients up until they are NaN."""
    net, tokens = build(kind), text()
    loss = F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    norms = [float(p.grad.norm()) for p in net.parameters() if p.grad is not None]
    assert len(norms) == len(list(net.parameters()))
    assert max(norms) < 10
    schedule = Schedule(steps=60, batch_size=4, learning_rate=1e-2)
    train_end_to_end(net, tokens, schedule, torch.Generator().manual_seed(0))
    after = F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
    assert float(after) < 0.5 * float(loss.detach())
