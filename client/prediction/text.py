"""Texts: how a language model goes on with a prompt, and how likely it finds a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...blocks.denoiser import Denoiser
from ...blocks.families.ar_lm import ARLanguageModel, generate
from ...blocks.families.pretrained_decoder import PretrainedDecoder, PretrainedDecoderSettings, go_on
from ...blocks.masked import MaskedDenoiser
from ...blocks.model_file import ModelCard
from ...blocks.sampler import sample_chain
from ...blocks.settings import TextSettings
from ...errors import InputError
from ...settings.contract import TextContract
from ..data.findings import Findings
from ..data.one_line import told_in_one_line
from ..data.text.documents import documents
from ..data.text.own_tokenizer import OwnTokenizer, folder_of
from ..data.text.tokenizer import Tokenizer, Tokens
from .columns import Predictions
from .request import INPUT, Wanted, contract_for

LENGTH = 64
_AT_ONCE = 64
_MOST_LOGITS = 1 << 22  # in memory at once, of a pretrained model's large vocabulary
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
    read = reading(card)
    length = LENGTH if wanted.length is None else wanted.length
    temperature = 1.0 if wanted.temperature is None else wanted.temperature
    if not temperature > 0:
        raise InputError("--temperature", temperature, "expected more than 0")
    generator = torch.Generator().manual_seed(wanted.seed)
    more, samples = _more(model, card, generator, temperature), wanted.samples or 1
    prompts = _documents(card, wanted, findings)
    found: dict[str, list[object]] = {"document": [], "prompt": [], "continuation": []}
    for i, prompt in enumerate(prompts):
        tokens = torch.from_numpy(read.encode(prompt)).to(model.device).expand(samples, -1)
        if tokens.shape[1] < read.context:
            raise InputError(INPUT, f"document {i + 1}", "has no text to go on from")
        whole = going_on(more, tokens, length, read.window)
        found["document"] += [i + 1] * samples
        found["prompt"] += [prompt] * samples
        found["continuation"] += [read.decode(row.numpy()) for row in whole[:, tokens.shape[1] :].cpu()]
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
    exact, those of a masked one an upper bound, estimated. A pretrained decoder has none of the first token.
    """
    read = reading(card)
    generator = torch.Generator().manual_seed(wanted.seed)
    texts = _documents(card, wanted, findings)
    counts, bits = [], []
    for i, text in enumerate(texts):
        tokens = torch.from_numpy(read.encode(text)).to(model.device)
        if len(tokens) <= read.context:
            raise InputError(INPUT, f"document {i + 1}", "has no text to be scored")
        counts.append(len(tokens) - read.context)
        bits.append(
            sum(
                float((_bits(model, part, generator) * (part.shape[1] - read.context)).sum())
                for part in _windows(tokens, read)
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


@dataclass(frozen=True)
class Reading:
    """How a model reads text: `window` tokens at once, of which it predicts none of the first `context`; so many
    windows `at_once`."""

    encode: Callable[[str], Tokens]
    decode: Callable[[Tokens], str]
    window: int
    context: int = 0
    at_once: int = _AT_ONCE


def reading(card: ModelCard) -> Reading:
    """Raises: InputError where the model's tokenizer is not on this machine."""
    settings = card.model
    if isinstance(settings, TextSettings):
        named = Tokenizer.of("model.tokenizer", settings.tokenizer)
        return Reading(named.encode, named.decode, settings.sequence_length)
    assert isinstance(settings, PretrainedDecoderSettings)
    own = OwnTokenizer.of("model.pretrained", folder_of(settings.pretrained))
    length = settings.sequence_length
    own.check("model", vocabulary=settings.vocabulary, length=length, pad=None)

    def encode(text: str) -> Tokens:
        return np.array(own.whole([text])[0], dtype=np.int64)

    at_once = max(1, _MOST_LOGITS // (length * settings.vocabulary))
    return Reading(encode, own.decode, length, 1, min(_AT_ONCE, at_once))


def _more(model: Denoiser, card: ModelCard, generator: torch.Generator, temperature: float) -> More:
    if isinstance(model, ARLanguageModel):
        return lambda context, count: generate(model, context, count, generator, temperature)
    if isinstance(model, PretrainedDecoder):
        return lambda context, count: go_on(model, context, count, generator, temperature)
    if isinstance(model, MaskedDenoiser):

        def complete(context: Tensor, count: int) -> Tensor:
            blank = context.new_full((len(context), count), model.mask)
            return model.complete(torch.cat([context, blank], dim=1), generator)

        return complete
    raise InputError("model", card.model.family, "no continuation is known for models of this family")


def _bits(model: Denoiser, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Bits a token of each window, (N, T) -> (N,)."""
    if isinstance(model, MaskedDenoiser):
        return model.bits(tokens, generator)[-1]
    return model.loss(sample_chain(model, tokens, tokens, generator)[-1], tokens) / math.log(2)


def _windows(tokens: Tensor, read: Reading) -> Iterator[Tensor]:
    """Tokens (t,) in windows, some at a time, (n, window); the rest is a shorter one, (1, t).

    Each begins with the last tokens of the one before it, as many as it does not predict.
    """
    step = read.window - read.context
    whole = (len(tokens) - read.context) // step
    if whole:
        yield from tokens[: whole * step + read.context].unfold(0, read.window, step).split(read.at_once)
    if whole * step + read.context < len(tokens):
        yield tokens[None, whole * step :]


def _documents(card: ModelCard, wanted: Wanted, findings: Findings) -> list[str]:
    """Each without the line break that ends it."""
    contract = contract_for(card, wanted, TextContract) or TextContract()
    with told_in_one_line(INPUT, wanted.source or ""):
        texts = [
            "".join(pieces).removesuffix("\n")
            for pieces in documents(INPUT, wanted.source or "", contract, findings)
        ]
    return texts
