"""A company's own parts of a model that came to it: trained on its examples alone, kept at home, laid over the model.

HOME/models/RUN/personal.safetensors: the tensors, with the digest of the model that they were trained on. Nothing but
the company's own predictions and figures is made from it. It may repeat training examples, so it is to be kept like
them: its mode is 600, no message carries it, and no export has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..blocks.model_file import ModelCard, load_model
from ..blocks.pretrained.card import sha256_of
from ..blocks.pretrained.settings import PretrainedSettings
from ..errors import InputError
from ..protocol import private_file
from .company import Company
from .model_folders import MODELS
from .quality import quality_of, spread

PERSONAL_FILE = "personal.safetensors"
_DIGEST = "digest"


@dataclass(frozen=True)
class Effect:
    """The family's metric on a company's `examples` held-out examples, of the common model and with its own parts."""

    examples: int
    common: float | None
    personal: float | None


def personalise_kept(company: Company, run: str) -> tuple[ModelCard, Path, Effect]:
    """Train the company's own parts of the model that came of this run, in place of any there were.

    The card, the file, and what they are worth. Raises: InputError where no such model came, or its plan has none.
    """
    folder = company.home / MODELS / run
    if run in ("", ".", "..") or Path(run).name != run or not folder.is_dir():
        raise InputError("--run", run, f"no model of this run came to {company.home / MODELS}")
    company.policy.know_pretrained()
    company.limit_threads()
    model, card = load_model(folder)
    model = model.to(company.policy.device)
    effect = personalise(model, card, company.data(), company.held_out(), folder / PERSONAL_FILE)
    company.log(f"trained own parts of the model of run {card.run}")
    return card, folder / PERSONAL_FILE, effect


def personalise(
    model: Denoiser, card: ModelCard, data: Examples, held_out: Examples | None, to: Path
) -> Effect:
    """Train personal parts on `data` and write them to `to`; the model is the common one again afterwards.

    Raises: InputError for a model that has none, and for examples that are not the model's.
    """
    from ..blocks.pretrained.denoiser import PretrainedDenoiser
    from ..blocks.pretrained.personal import add_personal, lift, personal_state, train_personal

    if not has_personal(card) or not isinstance(model, PretrainedDenoiser):
        raise InputError("model.personal", "nothing", "the run's plan gives a company no parts of its own")
    data.check("data.npz", card.model.kind)
    shown = None if held_out is None or not len(held_out) else spread(held_out).to(model.device)
    common = None if shown is None else quality_of(model, shown)
    try:
        add_personal(model)
        train_personal(model, data, torch.Generator().manual_seed(0))
        own = None if shown is None else quality_of(model, shown)
        private_file.write(to, save(personal_state(model), {_DIGEST: card.digest}))
    finally:
        lift(model)
    return Effect(0 if shown is None else len(shown), common, own)


def has_personal(card: ModelCard) -> bool:
    """Whether a company has parts of its own in this model."""
    return isinstance(card.model, PretrainedSettings) and card.model.personal != "nothing"


def lay_over_file(model: Denoiser, card: ModelCard, path: Path) -> None:
    """Put the parts in a file over the model of this card. Raises: InputError where they are not of it."""
    from ..blocks.pretrained.denoiser import PretrainedDenoiser
    from ..blocks.pretrained.personal import lay_over

    field = "personal"
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(_DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    except (OSError, SafetensorError) as error:
        raise InputError(field, str(path), f"cannot be read ({type(error).__name__})") from None
    if told != card.digest or not isinstance(model, PretrainedDenoiser):
        raise InputError(field, str(path), "trained on another model: personalise this one")
    lay_over(model, state, field, str(path))


@contextmanager
def laid_over(model: Denoiser, card: ModelCard, path: Path) -> Iterator[None]:
    """As `lay_over_file`, until the context is left."""
    from ..blocks.pretrained.denoiser import PretrainedDenoiser
    from ..blocks.pretrained.personal import lift

    lay_over_file(model, card, path)
    assert isinstance(model, PretrainedDenoiser)
    try:
        yield
    finally:
        lift(model)


def mark_of(path: Path) -> str:
    """SHA-256 of the file, empty where there is none."""
    return sha256_of(path) if path.is_file() else ""
