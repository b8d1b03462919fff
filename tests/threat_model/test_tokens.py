"""Token taps, levels, order and presence against real gradients of small language models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.blocks.families.masked_lm import MaskedLanguageModelSettings
from fedblocks.blocks.families.recurrent_lm import RecurrentLanguageModelSettings
from fedblocks.blocks.settings import NoiseSettings, TransformerSettings
from fedblocks.blocks.taps import PrefixTap, TokenTap, normalised
from fedblocks.threat_model.block_problem import BlockProblem
from fedblocks.threat_model.problem import Values
from fedblocks.threat_model.tokens.levels import levels
from fedblocks.threat_model.tokens.order import most_likely
from fedblocks.threat_model.tokens.presence import Calibrated, exact, frequencies, recall
from fedblocks.threat_model.tokens.span import Span

SMALL = {"hidden_size": 48, "heads": 2, "sequence_length": 9, "tokenizer": "text8", "vocabulary": 27}
CASES: dict[str, tuple[TransformerSettings, int]] = {  # settings, block
    "ar, raw": (ARLanguageModelSettings(layers=4, blocks=2, features="raw", **SMALL), 1),
    "ar, one layer": (ARLanguageModelSettings(layers=1, blocks=1, features="raw", **SMALL), 0),
    "ar, prefix": (ARLanguageModelSettings(layers=4, blocks=2, features="prefix", **SMALL), 1),
    "recurrent": (RecurrentLanguageModelSettings(layers=8, blocks=1, **SMALL), 0),
    "masked": (MaskedLanguageModelSettings(layers=4, blocks=2, **SMALL), 1),
}
CAUSAL = [name for name in CASES if name != "masked"]


def problem_of(name: str, draws: int = 1) -> BlockProblem:
    settings, block = CASES[name]
    torch.manual_seed(0)
    model = build_model(settings, NoiseSettings())
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero hides what lies behind it
            p.add_(0.1 * torch.randn_like(p))
    return BlockProblem(model, block, BlockObjective(), settings, draws=draws)


def gradient_of(problem: BlockProblem, text: Tensor, seed: int = 0) -> tuple[dict[str, Tensor], Values]:
    values = problem.sample({"tokens": text[None]}, torch.Generator().manual_seed(seed))
    return problem.tensors(problem.gradient(values)[0].float().double()), values


TEXT = torch.tensor([3, 7, 7, 1, 20, 3, 11, 5, 26])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("draws", [1, 2])
def test_what_enters_lies_in_the_span_and_other_values_do_not(name: str, draws: int) -> None:
    """Would catch a tap that names another weight, other rows, or scales, normalises or modulates otherwise than the
    layer does; and a nuisance that is counted too small."""
    problem = problem_of(name, draws)
    tensors, values = gradient_of(problem, TEXT)
    assert problem.taps
    for tap in problem.taps:
        assert isinstance(tap, TokenTap | PrefixTap)
        span = Span.of(tensors[tap.weight][tap.rows], 0.0)
        read = TEXT[:-1]
        if isinstance(tap, PrefixTap):
            wrong = TEXT.flip(0)
            inside, outside = tap.enter(TEXT[None])[0, :-1], tap.enter(wrong[None])[0, 1:]
        else:
            table = normalised(tap.table + tap.offset, tap.norm)
            if tap.modulation is not None:
                shown = values["noise"][0, 0] >= values["level"][0, 0]
                assert shown.any()
                read = TEXT[shown]
                table = tap.modulation.apply(table, tap.modulation.curve(values["level"][0])[0])
            absent = torch.tensor([v for v in range(27) if v not in TEXT])
            inside, outside = table[read], table[absent]
        assert span.rank <= len(TEXT) * (1 + draws * max(tap.nuisance, 1)) < problem_width(problem)
        assert float(span.leverage(inside).max()) < float(span.leverage(outside).min()) - 1


def problem_width(problem: BlockProblem) -> int:
    return problem.settings.hidden_size


@pytest.mark.parametrize("name", CAUSAL)
def test_prefixes_give_token_by_token_what_enters_at_once(name: str) -> None:
    """Oracle: the pass over the whole text. Would catch keys kept for another prefix, a wrong rotation, or choices
    that see each other."""
    problem = problem_of(name)
    for tap in problem.taps:
        if not isinstance(tap, PrefixTap):
            continue
        prefixes, values = tap.prefixes(), torch.arange(27)
        texts = torch.stack([TEXT, TEXT.flip(0)])
        parents = torch.zeros(2, dtype=torch.long)
        for place in range(4):
            found = prefixes.choices(values)  # (B, 27, D)
            for row, text in enumerate(texts[: len(found)]):
                grown = torch.cat([text[:place].expand(27, -1), values[:, None]], dim=1)
                torch.testing.assert_close(found[row], tap.enter(grown)[:, -1])
            prefixes.extend(parents, texts[:, place])
            parents = torch.arange(2)


@pytest.mark.parametrize("draws", [1, 3])
def test_masking_rates_come_out_of_the_modulation(draws: int) -> None:
    """Would catch a curve that is not what the layers are modulated by, or a search that stops at the grid."""
    problem = problem_of("masked", draws)
    tensors, values = gradient_of(problem, TEXT)
    tap = problem.taps[0]
    assert isinstance(tap, TokenTap)
    assert tap.modulation is not None
    bounds = problem.by_name["level"].bounds
    assert bounds is not None
    found = levels(tensors, tap.modulation, bounds, draws)
    torch.testing.assert_close(found.sort().values, values["level"][0].sort().values, atol=1e-4, rtol=0)


def hard(leverage: Tensor) -> Tensor:
    return torch.where(leverage < 11, 5.0, -5.0).double()


@pytest.mark.parametrize("name", ["ar, raw", "ar, prefix", "recurrent"])
@pytest.mark.parametrize("start", [[], [4, 4, 4]])
def test_the_order_is_found_and_a_run_of_the_first_token_is_no_answer(name: str, start: list[int]) -> None:
    """Would catch a search that keeps what passes every check: a constant run of the first token does."""
    problem = problem_of(name)
    text = torch.cat([torch.tensor(start, dtype=torch.long), TEXT])[: len(TEXT)]
    tensors, _ = gradient_of(problem, text)
    taps = [
        (tap, Span.of(tensors[tap.weight][tap.rows], 0.0), hard)
        for tap in problem.taps if isinstance(tap, PrefixTap)
    ]  # fmt: skip
    flat = torch.zeros(28, 27, dtype=torch.float64)
    for tap, span, _ in taps:
        decoy = tap.enter(text[:1].expand(1, len(text) - 1))[0]
        assert float(span.leverage(decoy).max()) < 11  # it passes
    found = most_likely(taps, len(text) - 1, values=torch.arange(27), log_prior=flat, width=16)
    assert torch.equal(found.tokens, text[:-1])


def test_rank_counts_directions_and_noise_raises_the_floor() -> None:
    """Would catch a rank that counts rounding errors, or noise as if it were gradient."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 5, generator=generator).double()
    rows = left @ torch.randn(5, 32, generator=generator).double()
    assert Span.of(rows.float().double(), 0.0).rank == 5
    noisy = rows + 1e-3 * torch.randn(64, 32, generator=generator).double()
    assert Span.of(noisy, 0.0).rank == 32
    assert Span.of(noisy, 1e-3).rank == 5


def test_practice_decides_between_leverage_and_frequency() -> None:
    """Would catch an attack that falls below the guess from frequencies once its leverage says nothing."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = 60
    rates = torch.rand(vocabulary, generator=generator) ** 3
    sets = [
        frozenset(torch.nonzero(torch.rand(vocabulary, generator=generator) < rates)[:, 0].tolist()) | {0}
        for _ in range(60)
    ]
    prior = frequencies(sets[20:], vocabulary)

    def features(true: frozenset[int], told: float) -> Tensor:
        there = torch.zeros(vocabulary, dtype=torch.float64)
        there[list(true)] = 1.0
        return torch.stack([told * there, torch.zeros_like(there)], 1) + torch.randn(
            vocabulary, 2, generator=generator
        )

    for told in (0.0, -40.0):
        calibrated = Calibrated.fit([features(each, told) for each in sets[:16]], sets[:16], prior)
        odds = [calibrated.log_odds(features(each, told), prior) for each in sets[16:20]]
        if told:
            assert all(exact(o, each) for o, each in zip(odds, sets[16:20], strict=True))
        else:
            found = sum(recall(o, each) for o, each in zip(odds, sets[16:20], strict=True))
            blind = sum(recall(prior, each) for each in sets[16:20])
            assert found > blind - 0.3
            assert not any(exact(o, each) for o, each in zip(odds, sets[16:20], strict=True))
