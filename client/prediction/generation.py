"""Images drawn of a class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...blocks.denoiser import Denoiser
from ...blocks.model_file import ModelCard
from ...blocks.sampler import sample_chain
from ...errors import InputError
from ..data.findings import Findings
from .columns import Predictions
from .request import Wanted

_AT_ONCE = 64
SAMPLES = 4


def generated(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Columns sample (from 1), label and image (N, C, S, S) in [0, 1]; `samples` of each label, 4 if not said."""
    kind = card.model.kind
    chosen = [_number(card, name) for name in wanted.labels] or list(range(kind.input_classes or 0))
    samples = wanted.samples or SAMPLES
    labels = torch.tensor(chosen).repeat_interleave(samples)
    like = torch.zeros(1, *kind.targets, device=model.device)
    generator, drawn = torch.Generator().manual_seed(wanted.seed), []
    for part in labels.split(_AT_ONCE):
        images = sample_chain(model, part.to(model.device), like, generator)[-1]
        drawn.append(images.clamp(0, 1).cpu())
        on_done(sum(map(len, drawn)), len(labels))
    findings.fact("images", f"{samples} of each of {len(chosen)} classes")
    columns = {
        "sample": np.tile(np.arange(1, samples + 1), len(chosen)),
        "label": np.array([card.name_of(i) for i in labels.tolist()]),
        "image": torch.cat(drawn).numpy(),
    }
    return Predictions("images", columns)


def _number(card: ModelCard, name: str) -> int:
    """The class that a name or number stands for."""
    classes = card.model.kind.input_classes or 0
    known = [card.name_of(i) for i in range(classes)]
    if name not in known:
        raise InputError("--label", name, f"expected one of {', '.join(known[:20])}")
    return known.index(name)
