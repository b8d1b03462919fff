"""Texts: how a language model goes on with a prompt, and how likely it finds a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ...blocks.denoiser import Denoiser
from ...blocks.families.ar_lm import ARLanguageModel, generate
from ...blocks.masked import MaskedDenoiser
from ...blocks.model_file import ModelCard
from ...blocks.sampler import sample_chain
from ...blocks.settings import TextSettings
from ...errors import InputError
from ...settings.contract import TextContract
from ..data.findings import Findings
from ..data.one_line import told_in_one_line
from ..data.text.documents import documents
from ..data.text.tokenizer import Tokenizer
from .columns import Predictions
from .request import INPUT, Wanted, contract_for

LENGTH = 64
_AT_ONCE = 64
# `more(context (N, t), count)` -> (N, t + count)
More = Callable[[Tensor, int], Tensor]


def continued(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Columns document (from 1), prompt and continuation: each document is a prompt, `samples` are drawn of each.

    A model reads as many of the last tokens as it was trained on at once.
    """
    settings, tokenizer = _read_by(card)
    length = LENGTH if wanted.length is None else wanted.length
    temperature = 1.0 if wanted.temperature is None else wanted.temperature
    if not temperature > 0:
        raise InputError("--temperature", temperature, "expected more than 0")
    generator = torch.Generator().manual_seed(wanted.seed)
    more, samples = _more(model, settings, generator, temperature), wanted.samples or 1
    prompts = _documents(card, wanted, findings)
    found: dict[str, list[object]] = {"document": [], "prompt": [], "continuation": []}
    for i, prompt in enumerate(prompts):
        tokens = torch.from_numpy(tokenizer.encode(prompt)).to(model.device).expand(samples, -1)
        whole = going_on(more, tokens, length, settings.sequence_length)
        found["document"] += [i + 1] * samples
        found["prompt"] += [prompt] * samples
        found["continuation"] += [tokenizer.decode(row.numpy()) for row in whole[:, tokens.shape[1] :].cpu()]
        on_done(i + 1, len(prompts))
    return Predictions("continuations", {name: np.array(values) for name, values in found.items()})


def scored(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Columns document (from 1), tokens, bits (of the whole text) and bits_per_token.

    A text is read in windows as long as those of training, each by itself. The bits of an autoregressive model are
    exact, those of a masked one an upper bound, estimated.
    """
    settings, tokenizer = _read_by(card)
    generator = torch.Generator().manual_seed(wanted.seed)
    texts = _documents(card, wanted, findings)
    counts, bits = [], []
    for i, text in enumerate(texts):
        tokens = torch.from_numpy(tokenizer.encode(text)).to(model.device)
        if len(tokens) == 0:
            raise InputError(INPUT, f"document {i + 1}", "has no text to be scored")
        counts.append(len(tokens))
        bits.append(
            sum(
                float((_bits(model, part, generator) * part.shape[1]).sum())
                for part in _windows(tokens, settings.sequence_length)
            )
        )
        on_done(i + 1, len(texts))
    per_token = np.array(bits) / np.array(counts)
    columns = {"document": np.arange(1, len(texts) + 1), "tokens": np.array(counts), "bits": np.array(bits)}
    return Predictions("scores", columns | {"bits_per_token": per_token})


def going_on(more: More, tokens: Tensor, length: int, window: int) -> Tensor:
    """tokens (N, t) and `length` further ones, of which no step sees more than `window` tokens at once."""
    end = tokens.shape[1] + length
    while tokens.shape[1] < end:
        left = end - tokens.shape[1]
        # At least half of the window is what was there before, unless that is shorter.
        count = left if end <= window else min(left, window // 2)
        context = tokens[:, max(0, tokens.shape[1] - (window - count)) :]
        tokens = torch.cat([tokens, more(context, count)[:, context.shape[1] :]], dim=1)
    return tokens


def _more(model: Denoiser, settings: TextSettings, generator: torch.Generator, temperature: float) -> More:
    if isinstance(model, ARLanguageModel):
        return lambda context, count: generate(model, context, count, generator, temperature)
    if isinstance(model, MaskedDenoiser):

        def complete(context: Tensor, count: int) -> Tensor:
            blank = context.new_full((len(context), count), model.mask)
            return model.complete(torch.cat([context, blank], dim=1), generator)

        return complete
    raise InputError("model", settings.family, "no continuation is known for models of this family")


def _bits(model: Denoiser, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Bits a token of each window, (N, T) -> (N,)."""
    if isinstance(model, MaskedDenoiser):
        return model.bits(tokens, generator)[-1]
    return model.loss(sample_chain(model, tokens, tokens, generator)[-1], tokens) / math.log(2)


def _windows(tokens: Tensor, length: int) -> Iterator[Tensor]:
    """Tokens (t,) in windows of `length`, some at a time, (n, length); the rest is a shorter one, (1, t)."""
    whole = len(tokens) // length * length
    yield from tokens[:whole].view(-1, length).split(_AT_ONCE) if whole else ()
    if whole < len(tokens):
        yield tokens[None, whole:]


def _read_by(card: ModelCard) -> tuple[TextSettings, Tokenizer]:
    settings = card.model
    assert isinstance(settings, TextSettings)
    return settings, Tokenizer.of("model.tokenizer", settings.tokenizer)


def _documents(card: ModelCard, wanted: Wanted, findings: Findings) -> list[str]:
    """Each without the line break that ends it."""
    contract = contract_for(card, wanted, TextContract) or TextContract()
    with told_in_one_line(INPUT, wanted.source or ""):
        texts = [
            "".join(pieces).removesuffix("\n")
            for pieces in documents(INPUT, wanted.source or "", contract, findings)
        ]
    return texts
