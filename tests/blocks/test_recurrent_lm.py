"""Properties of the looped language model; what it shares with the plain one is tested with that."""

from __future__ import annotations

from itertools import pairwise

import torch

from fedblocks.blocks import BlockObjective, build_model, sample_chain
from fedblocks.blocks.families.recurrent_lm import RecurrentLanguageModel, RecurrentLanguageModelSettings
from fedblocks.blocks.noise import Seeded
from fedblocks.settings import NoiseSettings

SETTINGS = RecurrentLanguageModelSettings(hidden_size=16, layers=8, heads=2, recurrences=3, sequence_length=8)


def looped() -> RecurrentLanguageModel:
    torch.manual_seed(0)
    net = build_model(SETTINGS, NoiseSettings())
    assert isinstance(net, RecurrentLanguageModel)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def text(n: int = 3) -> torch.Tensor:
    return torch.randint(97, (n, 8), generator=torch.Generator().manual_seed(0))


def calls_of(net: RecurrentLanguageModel) -> tuple[list[int], list[int]]:
    """Calls of each layer of the prelude, and of core and coda, are counted in these lists."""
    part = net.text_block(0)
    prelude, rest = [0] * len(part.prelude), [0] * len(part.layers)
    for counts, layers in ((prelude, part.prelude), (rest, part.layers)):
        for i, layer in enumerate(layers):
            linear = layer.mlp.down

            def count(*_: object, i: int = i, counts: list[int] = counts) -> None:
                counts[i] += 1

            linear.register_forward_hook(count)
    return prelude, rest


def test_layers_are_cut_one_two_one() -> None:
    """Would catch layers that are lost or counted twice in the cut."""
    part = looped().text_block(0)
    assert (len(part.prelude), len(part.layers)) == (2, 6)


def test_training_is_one_pass_and_inference_loops_all_but_the_prelude() -> None:
    """Would catch training that unrolls, or an inference that runs `recurrences` of something else."""
    net, tokens = looped(), text()
    prelude, rest = calls_of(net)
    generator = torch.Generator().manual_seed(0)
    BlockObjective()(net, block=0, inputs=tokens, targets=tokens, source=Seeded(generator))
    assert prelude == [1, 1]
    assert rest == [2, 2, 2, 2, 2, 1]  # clean and noisy stream; nothing reads the last layer's clean one
    prelude[:], rest[:] = [0] * 2, [0] * 6
    predictions = sample_chain(net, tokens, tokens, generator)
    assert len(predictions) == 1
    assert prelude == [1, 1]
    assert rest == [2 * 3, 2 * 3, 2 * 3, 2 * 3, 2 * 3, 3]


def test_every_recurrence_starts_from_the_estimate_of_the_one_before() -> None:
    """Would catch a loop whose steps do not hand on what they found."""
    net, tokens = looped(), text()
    one, three = (
        sample_chain(net, tokens, tokens, torch.Generator().manual_seed(0), steps)[-1] for steps in (1, 3)
    )
    assert not torch.allclose(one, three)
    handed_on: list[torch.Tensor] = []
    predict = net.predict

    def spy(block: int, z: torch.Tensor, level: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        handed_on.append(z)
        return predict(block, z, level, context)

    net.predict = spy  # type: ignore[method-assign]
    sample_chain(net, tokens, tokens, torch.Generator().manual_seed(0))
    assert len(handed_on) == SETTINGS.recurrences
    assert all(not torch.equal(a, b) for a, b in pairwise(handed_on))
