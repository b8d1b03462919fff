"""The family's metric of a model, as a run's own evaluation has it: of all companies, or on what each held out."""

from __future__ import annotations

import torch

from ...blocks import Denoiser
from ...blocks.build import network_of
from ...blocks.examples import Examples
from ...blocks.model_file import model_of
from ...server.models import card_of
from ...server.run_folder import RunFolder


def quality_of(model: Denoiser, data: Examples, seed: int) -> float:
    """After the whole chain."""
    data, generator = data.to(model.device), torch.Generator().manual_seed(seed)
    return model.eval().chain_quality(data.inputs, data.targets, generator)[-1]


def by_company(run: RunFolder, round_: int | None = None) -> dict[str, float]:
    """The family's metric of a round's model (none: the last) on what each company held out, by its name; none where
    the metric is of a whole set of samples, of which a company has too few."""
    if not fits_few(run):
        return {}
    checkpoint, card = card_of(run, round_)
    model, seed = model_of(checkpoint.model, card), run.settings().seed
    return {
        file.stem: quality_of(model, Examples.load(file), seed)
        for file in sorted(run.own_heldout.glob("*.npz"))
    }


def fits_few(run: RunFolder) -> bool:
    """Whether the metric can be told of as few examples as a company holds out."""
    return network_of(run.plan().model).metric_of_one
