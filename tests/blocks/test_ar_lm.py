"""Properties of the autoregressive language model: what it may see, its cache, its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from fedblocks.blocks import BlockObjective, LogNormalNoise, Partition, Schedule, sample_chain, train
from fedblocks.blocks.families.ar_lm import ARLanguageModel, GrowingText, generate
from fedblocks.blocks.families.recurrent_lm import RecurrentLanguageModel

VOCABULARY, LENGTH = 11, 9


def ar(features: str = "prefix", blocks: int = 2) -> ARLanguageModel:
    torch.manual_seed(0)
    partition = Partition.equi_probability(LogNormalNoise(), blocks)
    net = ARLanguageModel(
        partition=partition,
        features=features,  # type: ignore[arg-type]
        vocabulary=VOCABULARY,
        hidden_size=16,
        layers=2 * blocks,
        heads=2,
    )
    return moved(net)


def recurrent() -> ARLanguageModel:
    torch.manual_seed(0)
    partition = Partition.equi_probability(LogNormalNoise(), 1)
    net = RecurrentLanguageModel(
        partition=partition, vocabulary=VOCABULARY, hidden_size=16, layers=4, heads=2, recurrences=3
    )
    return moved(net)


def moved(net: ARLanguageModel) -> ARLanguageModel:
    """adaLN-zero hides the noisy stream's path; move off it."""
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


MODELS = {"prefix": ar, "raw": lambda: ar("raw"), "recurrent": recurrent}


def text(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def chain(net: ARLanguageModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    return sample_chain(net, tokens, tokens, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", MODELS)
def test_a_prediction_sees_no_token_from_its_own_on(kind: str) -> None:
    """Would catch a leak: the prediction of token t must not change when tokens t and later do."""
    net, tokens = MODELS[kind](), text()
    before = chain(net, tokens)
    for t in range(LENGTH):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1 + text(seed=t)[:, t:]) % VOCABULARY
        for a, b in zip(before, chain(net, changed), strict=True):
            torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1])


@pytest.mark.parametrize("kind", MODELS)
def test_a_prediction_sees_every_earlier_token(kind: str) -> None:
    """Would catch a mask that hides too much."""
    net, tokens = MODELS[kind](), text()
    before = chain(net, tokens)[-1]
    for t in range(LENGTH - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCABULARY
        differs = (before - chain(net, changed)[-1]).abs().amax(dim=(0, 2))
        assert (differs[t + 1 :] > 1e-6).all()


@pytest.mark.parametrize("kind", MODELS)
def test_training_and_chain_read_the_same_noisy_token(kind: str) -> None:
    """Would catch a noisy token that reads another: its logits depend on its own z alone."""
    net, tokens = MODELS[kind](), text()
    block = len(net.blocks) - 1
    level = torch.full((len(tokens),), 1.0)
    z = net.clean(tokens) + torch.randn(*tokens.shape, 16, generator=torch.Generator().manual_seed(1))
    context = net.context(block, tokens)
    with torch.no_grad():
        before = net.predict(block, z, level, context)
        for t in range(LENGTH):
            other = z.clone()
            other[:, t] += 1
            differs = (net.predict(block, other, level, context) - before).abs().amax(dim=(0, 2)) > 1e-6
            assert differs.nonzero().flatten().tolist() == [t]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [4, 1, 4]])
def test_the_cache_gives_what_recomputing_gives(kind: str, pieces: list[int]) -> None:
    """Would catch a wrong position, a stale key or a context of the wrong token, text read in any pieces."""
    net, tokens = MODELS[kind](), text()
    expected = chain(net, tokens)[-1]
    generator = torch.Generator().manual_seed(0)
    growing, at = GrowingText(net, len(tokens)), 0
    for piece in pieces:
        torch.testing.assert_close(growing.predict(generator), expected[:, at], rtol=1e-4, atol=1e-5)
        growing.read(tokens[:, at : at + piece])
        at += piece


def test_cold_generation_takes_the_likeliest_token() -> None:
    """Would catch generation that skips, repeats or misplaces a token; it may start from nothing."""
    net = ar()
    for prompt in (text()[:, :3], text()[:, :0]):
        found = generate(net, prompt, 4, torch.Generator().manual_seed(0), temperature=1e-4)
        assert found.shape == (3, prompt.shape[1] + 4)
        assert torch.equal(found[:, : prompt.shape[1]], prompt)
        likeliest = chain(net, found)[-1].argmax(dim=-1)
        assert torch.equal(found[:, prompt.shape[1] :], likeliest[:, prompt.shape[1] :])


def test_the_chain_draws_nothing_so_its_score_is_exact() -> None:
    """Would catch a random start, which would make the score a bound: any generator gives the same."""
    net, tokens = ar(), text()
    a, b = (sample_chain(net, tokens, tokens, torch.Generator().manual_seed(s))[-1] for s in (0, 1))
    assert torch.equal(a, b)
    torch.testing.assert_close(a.softmax(-1).sum(-1), torch.ones(tokens.shape))
    likelihood = a.log_softmax(-1).gather(2, tokens[..., None])[..., 0].mean(dim=1)
    torch.testing.assert_close(net.score(a, tokens), -likelihood / math.log(2))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stacked_blocks_start_from_the_trained_block_before(ema: float) -> None:
    """Would catch a copy of the untrained block or of the wrong one, or two blocks that share weights."""
    net, tokens, steps = ar(blocks=3), text(4), 20
    untrained = vector_of(net.blocks[0])
    after_one_step: list[torch.Tensor] = []

    def on_step(step: int) -> None:
        if step % steps == 1:
            after_one_step.append(vector_of(net.blocks[step // steps]))

    schedule = Schedule(steps=steps, batch_size=4, learning_rate=1e-2, schedule="stacked", ema=ema)
    generator = torch.Generator().manual_seed(0)
    objective = BlockObjective()
    train(net, tokens, tokens, objective=objective, schedule=schedule, generator=generator, on_step=on_step)
    for b in (1, 2):  # the first step of a one-cycle schedule is a 25th of the highest
        assert float((after_one_step[b] - vector_of(net.blocks[b - 1])).abs().max()) < 1e-3
        assert float((after_one_step[b] - untrained).abs().max()) > 1e-2
        assert float((vector_of(net.blocks[b]) - vector_of(net.blocks[b - 1])).abs().max()) > 1e-2


def vector_of(block: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in block.parameters()])
