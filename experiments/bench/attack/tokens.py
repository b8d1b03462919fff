"""Token span on trained blocks of the language presets: gradients as a company computes them, in float32, no noise.

One model a preset and seed; rotary positions let it read shorter texts too, so the autoregressive model is attacked
at 16, 32 and 64 tokens. Of its texts in order every fifth begins with a run of one token, the decoy of the search.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....blocks import Draw
from ....blocks.examples import Examples
from ....settings.load import validated
from ....threat_model.releases import Release, released
from ....threat_model.subject import Subject
from ....threat_model.tokens.presence import exact, recall
from ....threat_model.tokens.texts import Make, TextAttacker
from ...presets import load_settings
from ...simulation.preparation import prepare

_CASES = 10  # texts a block
_WIDTH = 64
_RUN = 5  # tokens of a decoy's run
# Enough to be far from the random start; the presets' own length takes minutes.
_TRAINING = ("pretraining.steps=200",)


def measure(seeds: int) -> dict[str, Any]:
    """Shares of texts over blocks and seeds, of `ar_leverage_recall` and `..._chance` the shares of values."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            autoregressive = _subject("ar-text", seed, Path(folder) / "ar")
            for length in (16, 32):
                short = _shortened(autoregressive, length)
                for block in short.blocks:
                    found.setdefault("ar_order_exact", []).extend(_ordered(short, block))
            # The first block reads raw tokens; later ones read what earlier ones made of them.
            _values(autoregressive, 0, "ar_leverage", found)
            _values(
                _subject("recurrent-text", seed, Path(folder) / "recurrent"), 0, "recurrent_tokens", found
            )
            masked = _subject("masked-text", seed, Path(folder) / "masked")
            for block in masked.blocks:
                _values(masked, block, "masked_tokens", found)
    keys = (
        "ar_order_exact", "ar_leverage_recall", "ar_leverage_chance", "recurrent_tokens_exact",
        "masked_tokens_exact",
    )  # fmt: skip
    return {key: float(np.mean(found[key])) for key in keys}


def _subject(preset: str, seed: int, folder: Path) -> Subject:
    """A prepared run: its blocks are trained on public data."""
    settings = load_settings(preset, _TRAINING)
    run = prepare(validated(type(settings), settings.model_dump() | {"seed": seed}), folder)
    return Subject.of(run, seed=seed)


def _shortened(subject: Subject, length: int) -> Subject:
    """The same model on the first tokens of every text."""

    def cut(examples: Examples) -> Examples:
        return Examples(examples.inputs[:, :length], examples.targets[:, :length])

    model = subject.plan.model.model_copy(update={"sequence_length": length})
    return replace(
        subject, plan=subject.plan.model_copy(update={"model": model}), public=cut(subject.public),
        private={name: cut(each) for name, each in subject.private.items()}, _problems={},
    )  # fmt: skip


def _maker(subject: Subject, block: int, side: str) -> Make:
    def make(text: Examples, case: int, drawn: list[Draw]) -> Release:
        return released(subject, block, text, "bench", side, case, noisy=False, drawn=drawn)

    return make


def _attacker(subject: Subject, block: int) -> TextAttacker:
    return TextAttacker(subject.problem(block), subject.public, subject.generator("bench", block))


def _with_decoys(texts: Tensor) -> Examples:
    """Every fifth text begins with a run, which a search takes for the whole text if it keeps what passes alone."""
    texts = texts.clone()
    texts[::5, :_RUN] = texts[::5, :1]
    return Examples(texts, texts)


def _ordered(subject: Subject, block: int) -> list[float]:
    """Whether each text was found in order, but for its last token, which nothing reads."""
    attacker = _attacker(subject, block)
    by = attacker.practise(_maker(subject, block, "public"), order=True)
    victims = _with_decoys(subject.victims(_CASES, "bench", block).inputs)
    releases, _ = attacker.experiments(_maker(subject, block, "private"), victims)
    return [
        float(torch.equal(by.order(release, _WIDTH).tokens, text[:-1]))
        for release, text in zip(releases, victims.inputs, strict=True)
    ]


def _values(subject: Subject, block: int, name: str, found: dict[str, list[float]]) -> None:
    """Whether each set of values was exact; and the shares found by leverage alone, and by frequency alone."""
    attacker = _attacker(subject, block)
    by = attacker.practise(_maker(subject, block, "public"), order=False)
    victims = subject.victims(2 * _CASES, "bench", block)
    releases, sets = attacker.experiments(_maker(subject, block, "private"), victims)
    for release, true in zip(releases, sets, strict=True):
        if true:
            leverage = attacker.reader.features(release)[:, 0]
            found.setdefault(f"{name}_exact", []).append(float(exact(by.log_odds(release), true)))
            found.setdefault(f"{name}_recall", []).append(recall(-leverage, true))
            found.setdefault(f"{name}_chance", []).append(recall(attacker.prior, true))
