"""The models that runs have made: which there are, how two of a run differ, and one to take along."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..blocks import build_model, digest, metric_of
from ..blocks.model_file import ModelCard, model_of, save_model
from ..blocks.pretrained.settings import PretrainedSettings
from ..blocks.state import State, check_part
from ..errors import FedblocksError, InputError, RunError
from ..settings import RunSettings, is_simulation
from .checkpoint import Checkpoint, saved_rounds
from .own_account import guarantee_sentence
from .run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint of a run. `quality`: the family's `metric` on data of `measured_on`, where it was evaluated.

    `problem`: why there is none, or why it cannot be read.
    """

    run: str
    folder: str
    simulated: bool
    round: int | None = None
    rounds: int = 0
    digest: str = ""
    metric: str = ""
    quality: float | None = None
    measured_on: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far a part of the model moved between two checkpoints. `relative`: to its norm before, unless that is 0.

    The norms are Euclidean, over all values of the part.
    """

    part: str
    before: str
    after: str
    values: int
    norm: float
    relative: float | None


def saved_models(runs: Path) -> list[Saved]:
    """Every checkpoint of every run in the folder, or of the run that it is; a damaged one says what is wrong.

    Raises: InputError where there is no such folder.
    """
    if not runs.is_dir():
        raise InputError("runs_dir", str(runs), "no such folder")
    own = (runs / "plan.json").is_file()
    folders = [runs] if own else sorted(path.parent for path in runs.glob("[!.]*/plan.json"))
    return [saved for folder in folders for saved in _of_run(folder)]


def _of_run(folder: Path) -> list[Saved]:
    about: dict[str, Any] = {"run": folder.name, "folder": str(folder), "simulated": is_simulation(folder)}
    try:
        run = RunFolder.existing(folder)
        simulated = about["simulated"] = run.simulated()
        plan, rows = run.plan(), {row["round"]: row for row in run.metrics()}
        about |= {"rounds": plan.training.rounds, "metric": metric_of(plan.model).name}
        rounds = saved_rounds(run.checkpoints)
    except FedblocksError as error:
        return [Saved(**about, problem=str(error))]
    if not rounds:
        return [Saved(**about, problem="no checkpoint")]
    found = []
    for round_ in rounds:
        try:
            state = Checkpoint.load(run.checkpoints, round_).model
            told = digest(state.shared, *state.blocks).hex()
        except RunError as error:
            found.append(Saved(**about, round=round_, problem=str(error)))
            continue
        where, quality = _quality(rows.get(round_, {}), simulated)
        found.append(Saved(**about, round=round_, digest=told, measured_on=where, quality=quality))
    return found


def _quality(row: dict[str, Any], simulated: bool) -> tuple[str, float | None]:
    """Private data are measured on in a simulation alone."""
    quality = row.get("quality", {})
    where = "heldout" if simulated and "heldout" in quality else "public"
    values = quality.get(where)
    return (where, values[-1]) if values else ("", None)


def differences(run: RunFolder, before: int, after: int) -> list[Change]:
    """By how much each part of the model moved from one round to another.

    Raises: RunError where one of the checkpoints is gone, naming those that are there.
    """
    first, second = (_checkpoint(run, round_).model for round_ in (before, after))
    pairs = [("shared", first.shared, second.shared)]
    pairs += [(f"block {b}", *both) for b, both in enumerate(zip(first.blocks, second.blocks, strict=True))]
    return [_change(name, old, new) for name, old, new in pairs]


def _checkpoint(run: RunFolder, round_: int | None) -> Checkpoint:
    kept = saved_rounds(run.checkpoints)
    if kept and round_ is not None and round_ not in kept:
        named = ", ".join(map(str, kept))
        raise RunError(
            f"{run.checkpoints}: no checkpoint of round {round_}; there are those of rounds {named}"
        )
    return Checkpoint.load(run.checkpoints, round_)


def _change(part: str, old: State, new: State) -> Change:
    if old.keys() != new.keys():
        raise RunError(f"{part}: the two checkpoints are not of one model")
    real = [name for name in old if old[name].is_floating_point()]
    moved = math.sqrt(sum(float((new[n].double() - old[n].double()).square().sum()) for n in real))
    size = math.sqrt(sum(float(old[n].double().square().sum()) for n in real))
    return Change(
        part=part,
        before=digest(old).hex(),
        after=digest(new).hex(),
        values=sum(tensor.numel() for tensor in old.values()),
        norm=moved,
        relative=moved / size if size else None,
    )


def card_of(run: RunFolder, round_: int | None = None) -> tuple[Checkpoint, ModelCard]:
    """The checkpoint of a round (none: the last), and what is to be said of it.

    Raises: RunError where the checkpoint is gone, or is not of the plan's model.
    """
    settings, plan, checkpoint = run.settings(), run.plan(), _checkpoint(run, round_)
    model = build_model(plan.model, plan.noise)
    try:
        if len(checkpoint.model.blocks) != plan.model.blocks:
            raise RunError(f"{len(checkpoint.model.blocks)} blocks, the plan has {plan.model.blocks}")
        for b, part in enumerate((checkpoint.model.shared, *checkpoint.model.blocks)):
            check_part(model, part, b - 1 if b else None)
    except RunError as error:
        raise RunError(f"{run.checkpoints}: round {checkpoint.round} is not of the plan ({error})") from None
    rows = {row["round"]: row for row in run.metrics()}
    contract = settings.data.public.contract
    return checkpoint, ModelCard(
        version=__version__,
        run=plan.run,
        round=checkpoint.round,
        rounds=plan.training.rounds,
        plan=plan.digest().hex(),
        digest=digest(checkpoint.model.shared, *checkpoint.model.blocks).hex(),
        guarantee=_sentence(run, settings, checkpoint.round),
        model=plan.model,
        noise=plan.noise,
        metric=metric_of(plan.model).name,
        quality=_quality(rows.get(checkpoint.round, {}), simulated=False)[1],
        match_contrast=settings.data.match_contrast and plan.model.connector == "images",
        labels=settings.data.public.class_names,
        contract=None if contract is None else contract.model_dump(mode="json", exclude_none=True),
    )


def _sentence(run: RunFolder, settings: RunSettings, round_: int) -> str:
    if round_ == 0:
        return "Trained on public data alone: no company's data entered."
    return guarantee_sentence(run.plan(), settings.smallest_group, run.simulated())


Format = Literal["safetensors", "checkpoint", "adapter"]


def format_of(run: RunFolder, asked: Format | None) -> Format:
    """What a run's model is written as: what is asked for, or what it was before, a checkpoint, or else safetensors.

    Raises: InputError for one that the model cannot have.
    """
    model = run.plan().model
    pretrained = isinstance(model, PretrainedSettings)
    if asked in (None, "safetensors") or pretrained:
        return asked or ("checkpoint" if pretrained else "safetensors")
    rule = f"means nothing for a model of family {model.family}: it was no checkpoint before"
    raise InputError("--format", asked, rule)


def export(
    run: RunFolder, to: Path, round_: int | None = None, format_: Format = "safetensors"
) -> tuple[ModelCard, tuple[Path, Path]]:
    """Write the model of a round (none: the last); its card, and the paths of the model and of what says what it is.

    "safetensors": see `blocks.model_file.save_model`; "checkpoint" and "adapter": see `blocks.hand_back`.
    Raises: InputError for a `to` that exists, or for the adapter of a model without one.
    """
    if os.path.lexists(to):
        raise InputError("--to", str(to), "exists already; name another, or remove it")
    checkpoint, card = card_of(run, round_)
    if format_of(run, format_) == "safetensors":
        return card, save_model(checkpoint.model, card, to)
    from ..blocks.hand_back import hand_back
    from ..blocks.pretrained.denoiser import PretrainedDenoiser

    model = model_of(checkpoint.model, card)
    assert isinstance(model, PretrainedDenoiser)
    assert format_ != "safetensors"
    hand_back(model, card, to, format_)
    return card, (to, to / "README.md")
