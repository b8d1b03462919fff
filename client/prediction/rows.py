"""One answer an example: the class of an image, a text or a row with its probabilities, or the number of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...blocks.denoiser import Denoiser
from ...blocks.examples import Examples
from ...blocks.model_file import ModelCard
from ...blocks.sampler import sample_chain
from ...blocks.settings import ImageSettings
from ...errors import InputError
from ...settings import DataSource
from ...settings.contract import ImageContract, LabelledTextContract, TableContract
from ..data.findings import Findings
from ..data.images.unlabelled import load_unlabelled
from ..data.labelled_text.load import load_texts
from ..data.one_line import told_in_one_line
from ..data.tables.rows import load_rows
from .columns import Column, Predictions
from .request import INPUT, Wanted, contract_for

_AT_ONCE = 256


def classified_images(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Columns image, label, probability (of that label) and probabilities (N, classes)."""
    settings = card.model
    assert isinstance(settings, ImageSettings)
    contract = contract_for(card, wanted, ImageContract)
    source = wanted.source or ""
    with told_in_one_line(INPUT, source):
        names, images = load_unlabelled(INPUT, source, settings, card.match_contrast, contract, findings)
    return _classes(model, card, {"image": np.array(names)}, images, wanted, on_done)


def classified_texts(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Column place (line or row of the file), then as `classified_images`."""
    settings: Any = card.model  # those of a family with this connector
    contract = contract_for(card, wanted, LabelledTextContract)
    source = wanted.source or ""
    with told_in_one_line(INPUT, source):
        places, tokens = load_texts(INPUT, DataSource(source=source), settings, contract, findings)
    return _classes(model, card, {"place": np.array(places)}, tokens, wanted, on_done)


def predicted_rows(
    model: Denoiser,
    card: ModelCard,
    wanted: Wanted,
    findings: Findings,
    on_done: Callable[[int, int], None],
) -> Predictions:
    """Column row, from 1; of classes as `classified_images`, else the number in the contract's own unit."""
    contract = contract_for(card, wanted, TableContract)
    if contract is None:
        raise InputError(
            "--contract", None, "rows need a contract, and the model's card has none: name its file"
        )
    source = wanted.source or ""
    with told_in_one_line(INPUT, source):
        numbers, inputs = load_rows(INPUT, source, contract, findings)
    rows: dict[str, Column] = {"row": numbers}
    if card.model.kind.target_classes is not None:
        return _classes(model, card, rows, inputs, wanted, on_done)
    if contract.range is None:
        raise InputError("contract.range", None, "the model's answer is a number: say its range")
    low, high = contract.range
    answers = _answers(model, card, inputs, wanted, on_done).double().numpy()
    return Predictions("numbers", rows | {contract.label: low + (answers + 1) / 2 * (high - low)})


def _classes(
    model: Denoiser,
    card: ModelCard,
    names: dict[str, Column],
    inputs: Tensor,
    wanted: Wanted,
    on_done: Callable[[int, int], None],
) -> Predictions:
    shares = _answers(model, card, inputs, wanted, on_done).softmax(dim=1)  # (N, classes)
    known = tuple(card.name_of(i) for i in range(shares.shape[1]))
    best, chosen = shares.max(dim=1)
    columns: dict[str, Column] = names | {
        "label": np.array([known[i] for i in chosen.tolist()]),
        "probability": best.numpy(),
        "probabilities": shares.numpy(),
    }
    return Predictions("classes", columns, {"probabilities": known})


def _answers(
    model: Denoiser, card: ModelCard, inputs: Tensor, wanted: Wanted, on_done: Callable[[int, int], None]
) -> Tensor:
    """The model's predictions (N, ...) on the CPU; the inputs are checked against the kind that it reads."""
    kind = card.model.kind
    real = kind.target_classes is None
    targets = torch.zeros(len(inputs), *kind.targets, dtype=torch.float32 if real else torch.int64)
    Examples(inputs, targets).check(INPUT, kind)
    found = []
    for start in range(0, len(inputs), _AT_ONCE):
        part = inputs[start : start + _AT_ONCE].to(model.device)
        generator = torch.Generator().manual_seed(wanted.seed)
        found.append(sample_chain(model, part, targets[:1].to(model.device), generator)[-1].cpu())
        on_done(start + len(part), len(inputs))
    return torch.cat(found)
