"""A converted model computes what the original does, for every architecture, and also with more tokens.

The oracle is the model of transformers, loaded by transformers from the checkpoint's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import TINY, VOCABULARY, save
from torch import Tensor, nn

from fedblocks.blocks.pretrained.card import ConvertedCard
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.trunk import Trunk, build

EXACT = 1e-5
TOKENS, ADDED = 17, 3


@pytest.fixture(scope="module", params=list(TINY))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(TINY[request.param].made(), tmp_path_factory.mktemp(request.param))


class Pair:
    """A model of transformers, and its conversion into two blocks."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        save(model, folder / "original")
        self.card: ConvertedCard = convert(folder / "original", 2, folder / "converted")
        loaded = (
            type(model).from_pretrained(folder / "original", attn_implementation="sdpa", dtype="auto").eval()
        )
        self.model, self.base = loaded, loaded.base_model
        self.trunk, self.blocks = build(folder / "converted")

    def inputs(self, examples: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        if self.card.kind == "vision":
            size = self.card.image_size
            return torch.rand(examples, self.card.channels, size, size, generator=generator)
        return torch.randint(1, VOCABULARY, (examples, TOKENS), generator=generator)

    @torch.no_grad()
    def ours(self, inputs: Tensor, allowed: Tensor | None) -> Tensor:
        x = self.trunk.embed(inputs)
        positions = torch.arange(x.shape[1])
        return self.trunk.finish(run_all(self.trunk, self.blocks, x, allowed, positions))

    @torch.no_grad()
    def theirs(self, inputs: Tensor, present: Tensor | None = None) -> Tensor:
        mask = {} if present is None else {"attention_mask": present.long()}
        found: Tensor = self.base(inputs, **mask).last_hidden_state
        return found


def run_all(
    trunk: Trunk, blocks: list[nn.ModuleList], x: Tensor, allowed: Tensor | None, positions: Tensor
) -> Tensor:
    first = 0
    for block in blocks:
        x = trunk.run(block, x, allowed, positions, first)
        first += len(block)
    return x


def causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]


def test_hidden_states_are_those_of_the_original(pair: Pair) -> None:
    """Catches a layer run differently, in another order, with another mask, window, rotation or norm."""
    inputs = pair.inputs()
    allowed = causal(TOKENS) if pair.card.kind == "decoder" else None
    assert_close(pair.ours(inputs, allowed), pair.theirs(inputs))


def test_padding_is_seen_by_no_one(pair: Pair) -> None:
    """Catches a mask that is turned around, dropped or not narrowed by the window."""
    if pair.card.kind == "vision":
        pytest.skip("images have no padding")
    inputs = pair.inputs()
    present = torch.ones(inputs.shape, dtype=torch.bool)
    present[0, 11:] = present[1, 14:] = False
    allowed = present[:, None, None, :].expand(-1, 1, TOKENS, -1)
    if pair.card.kind == "decoder":
        allowed = allowed & causal(TOKENS)
    assert_close(pair.ours(inputs, allowed)[present], pair.theirs(inputs, present)[present])


def test_logits_are_those_of_the_original(pair: Pair) -> None:
    """Catches a head that is lost, not tied, or capped otherwise."""
    if pair.card.kind != "decoder":
        pytest.skip("no language-model head")
    inputs = pair.inputs()
    with torch.no_grad():
        wanted = pair.model(inputs).logits
        assert_close(pair.trunk.logits(pair.ours(inputs, causal(TOKENS))), wanted)


def test_tokens_that_no_one_may_see_change_nothing(pair: Pair) -> None:
    """Catches an architecture that takes positions, windows or rotations from a token's place in the sequence."""
    with torch.no_grad():
        x = pair.trunk.embed(pair.inputs())
        tokens = x.shape[1]
        positions = torch.arange(tokens)
        alone = (
            causal(tokens)
            if pair.card.kind == "decoder"
            else torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        )
        wanted = run_all(pair.trunk, pair.blocks, x, alone, positions)
        added = torch.randn(len(x), ADDED, x.shape[2])
        allowed = torch.zeros(1, 1, tokens + ADDED, tokens + ADDED, dtype=torch.bool)
        allowed[..., :tokens, :tokens] = alone
        allowed[..., tokens:, :] = True
        again = torch.cat([positions, positions[:ADDED]])
        found = run_all(pair.trunk, pair.blocks, torch.cat([x, added], dim=1), allowed, again)
    assert_close(found[:, :tokens], wanted)


def test_every_token_attends_to_all_without_a_mask(pair: Pair) -> None:
    """Catches a decoder that is causal although it was not asked to be."""
    with torch.no_grad():
        x = pair.trunk.embed(pair.inputs())
        positions = torch.zeros(x.shape[1], dtype=torch.long)  # of one place: no window cuts anything
        all_ = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
        assert_close(
            run_all(pair.trunk, pair.blocks, x, None, positions),
            run_all(pair.trunk, pair.blocks, x, all_, positions),
        )


@pytest.mark.parametrize(
    "name",
    [
        "bert",
        "distilbert",
        "modernbert",
        "vit",
        "dinov2-swiglu",
        "gpt2",
        "llama-3",
        "qwen3",
        "mistral",
        "gemma3",
    ],
)
def test_bfloat16_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    """Catches another order of roundings: the difference is that of masked attention alone, no more."""
    pair = Pair(TINY[name].made(torch.bfloat16), tmp_path)
    inputs = pair.inputs()
    allowed = causal(TOKENS) if pair.card.kind == "decoder" else None
    ours, theirs = pair.ours(inputs, allowed), pair.theirs(inputs)
    assert ours.dtype == torch.bfloat16
    if allowed is None:
        assert torch.equal(ours, theirs)
    else:
        assert (ours - theirs).abs().max() <= 0.03 * theirs.abs().max()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < EXACT
