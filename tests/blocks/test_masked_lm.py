"""Properties of masked diffusion and of the masked language model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedblocks.blocks import BlockObjective, MaskingRate, Partition, sample_chain
from fedblocks.blocks.denoiser import Draw
from fedblocks.blocks.families.masked_lm import MaskedLanguageModel
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.sampler import generate

VOCABULARY = 11


def model(blocks: int = 3) -> MaskedLanguageModel:
    torch.manual_seed(0)
    net = MaskedLanguageModel(
        partition=Partition.equi_probability(MaskingRate(), blocks),
        vocabulary=VOCABULARY, hidden_size=16, layers=6, heads=2,
    )  # fmt: skip
    for p in net.parameters():  # the zero-initialised parts hide what lies behind them; move off zero
        p.data += 0.05 * torch.randn_like(p)
    return net


def batch(n: int = 8) -> Tensor:
    return torch.randint(VOCABULARY, (n, 12), generator=torch.Generator().manual_seed(0))


class Oracle(MaskedLanguageModel):
    """Every block predicts the same distribution, whatever it sees."""

    logits: Tensor

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return self.known(self.logits.expand(*z.shape, -1), z)


def oracle(logits: Tensor, blocks: int = 3) -> Oracle:
    partition = Partition.equi_probability(MaskingRate(), blocks)
    net = Oracle(partition=partition, vocabulary=len(logits), hidden_size=16, layers=blocks, heads=2)
    net.logits = logits
    return net


def test_blocks_own_equal_shares_of_the_masking_rate() -> None:
    """The paper's alpha_b = 1 - b/B; block 0 owns the most masked."""
    edges = Partition.equi_probability(MaskingRate(rate_min=1e-6), 4).edges
    assert edges == pytest.approx((1, 0.75, 0.5, 0.25, 0), abs=1e-5)


def test_the_inputs_are_never_read_and_masked_tokens_do_not_leak() -> None:
    """Would catch an answer handed over as context: neither inputs nor what z hides may move a prediction."""
    net, x = model(), batch()
    draw = net.draw(1, x, Seeded(torch.Generator().manual_seed(1)))
    z = net.corrupt(x, draw)
    found = net.predict(1, z, draw.level, net.context(1, x))
    assert torch.equal(found, net.predict(1, z, draw.level, net.context(1, x.flip(0))))
    changed = torch.where(z == net.mask, (x + 1) % VOCABULARY, x)
    again = net.corrupt(changed, draw)
    assert torch.equal(z, again)
    chain = sample_chain(net, x, x, torch.Generator().manual_seed(2))
    other = sample_chain(net, x.flip(0), x, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(chain, other, strict=True))


def test_the_loss_counts_masked_tokens_only() -> None:
    """Against cross-entropy written out: mean over all tokens, zero for those shown."""
    net, x = model(), batch()
    draw = net.draw(0, x, Seeded(torch.Generator().manual_seed(1)))
    z = net.corrupt(x, draw)
    prediction = net.predict(0, z, draw.level, net.context(0, x))
    log_p = prediction.log_softmax(-1).gather(-1, x[..., None])[..., 0]
    expected = -(log_p * (z == net.mask)).sum(1) / x.shape[1]
    torch.testing.assert_close(net.loss(prediction, x), expected)
    weighted = BlockObjective().at(net, 0, net.context(0, x), x, draw)
    torch.testing.assert_close(weighted, expected / draw.level)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_bound_of_a_uniform_guess_is_log2_of_the_vocabulary(blocks: int) -> None:
    """Would catch a wrong weight, a gap between the intervals, or a mean over masked tokens alone."""
    found = oracle(torch.zeros(VOCABULARY), blocks).bits(batch(), torch.Generator().manual_seed(0))
    assert found.shape == (blocks, 8)
    torch.testing.assert_close(found.mean(1), torch.full((blocks,), math.log2(VOCABULARY)))


def test_the_bound_of_independent_tokens_is_their_entropy() -> None:
    """Tight where tokens are independent: the bound must be the cross-entropy, here the entropy."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    generator = torch.Generator().manual_seed(0)
    x = torch.multinomial(p.expand(256, -1), 32, replacement=True, generator=generator)
    found = oracle(p.log()).bits(x, torch.Generator().manual_seed(1)).mean(1)
    torch.testing.assert_close(found, torch.full((3,), 1.75), atol=0.03, rtol=0)


def test_the_ratio_estimate_agrees_with_the_plain_integral() -> None:
    """Would catch a bias of the ratio: the plain Monte-Carlo average of loss/rate over uniform rates."""
    net, x = model(1).requires_grad_(False), batch(64)
    found = net.bits(x, torch.Generator().manual_seed(0), draws=32).mean()
    generator = torch.Generator().manual_seed(1)
    plain = []
    for _ in range(60):
        rate = torch.rand(64, generator=generator).clamp_min(1e-3)
        z = net.corrupt(x, Draw(rate, torch.rand(x.shape, generator=generator)))
        plain.append((net.score(net.predict(0, z, rate, net.context(0, x)), x) / rate).mean())
    assert float(found) == pytest.approx(float(torch.stack(plain).mean()), rel=0.05)


def test_after_each_block_the_last_so_far_stands_in_for_the_rest() -> None:
    """Would catch intervals given to the wrong block: only block 1 is any good, at tokens that are all 0."""
    net = oracle(torch.zeros(VOCABULARY))
    sure = torch.full((VOCABULARY,), -30.0).index_fill(0, torch.tensor([0]), 0.0)
    net.predict = lambda b, z, level, context: net.known(  # type: ignore[method-assign]
        (sure if b == 1 else torch.zeros(VOCABULARY)).expand(*z.shape, -1), z
    )
    found = net.bits(torch.zeros(64, 12, dtype=torch.long), torch.Generator().manual_seed(0)).mean(1)
    whole = math.log2(VOCABULARY)
    torch.testing.assert_close(found, torch.tensor([whole, whole / 3, whole * 2 / 3]), atol=1e-3, rtol=1e-3)


def test_unmasking_keeps_what_it_has_drawn_and_ends_without_a_mask() -> None:
    """Would catch a token drawn anew, a mask left over, and a rate of unmasking that is not 1 - to/level."""
    net, generator = model(), torch.Generator().manual_seed(0)
    z = net.prior(torch.Size((200, 50)), 1.0, generator)
    assert (z == net.mask).all()
    uniform = torch.zeros(200, 50, VOCABULARY)
    half = net.advance(z, net.known(uniform, z), 0.8, 0.4, generator)
    assert float((half == net.mask).double().mean()) == pytest.approx(0.5, abs=0.03)
    drawn = torch.bincount(half[half != net.mask], minlength=VOCABULARY).double()
    assert float((drawn / drawn.sum() - 1 / VOCABULARY).abs().max()) < 0.02
    done = net.advance(half, net.known(uniform, half), 0.4, 0.0, generator)
    assert (done < VOCABULARY).all()
    assert torch.equal(done[half != net.mask], half[half != net.mask])
    text = generate(net, batch(), batch(), generator, steps_per_block=4)
    assert text.shape == (8, 12)
    assert int(text.max()) < VOCABULARY


def test_chain_quality_is_the_bound_and_a_function_of_the_seed() -> None:
    net, x = model().requires_grad_(False), batch()
    found = net.chain_quality(x, x, torch.Generator().manual_seed(3))
    assert found == pytest.approx(net.bits(x, torch.Generator().manual_seed(3)).mean(1).tolist())
    assert found == net.chain_quality(
        x.flip(0), x, torch.Generator().manual_seed(3)
    )  # the inputs are never read
