"""`fedblocks predict`: what a model that was trained together makes of a company's own inputs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError

if TYPE_CHECKING:
    from ..blocks.denoiser import Denoiser
    from ..blocks.model_file import ModelCard
    from ..client.prediction import Predictions

people = Console(stderr=True)
_FORECASTS, _TEXTS, _DRAWN = "Forecasts", "Language models", "Image generators"


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="a run folder, an exported model, or a converted decoder's folder"
        ),
    ],
    source: Annotated[str | None, typer.Option("--input", help="a file or folder of inputs")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="a new file: .csv, .npz or .json")] = None,
    contract: Annotated[
        str | None, typer.Option(help="how inputs are read, a TOML file; none: as the model says")
    ] = None,
    round_: Annotated[
        int | None, typer.Option("--round", min=0, help="of a run; none means the last")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="futures, texts or images drawn of each input")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="share of futures from low to high", rich_help_panel=_FORECASTS)
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="tokens to go on", rich_help_panel=_TEXTS)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="below 1: likelier tokens", rich_help_panel=_TEXTS)
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="bits of the texts themselves", rich_help_panel=_TEXTS)
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option(help="a class; repeatable; none: all", rich_help_panel=_DRAWN)
    ] = None,
    pretrained: Annotated[
        list[Path] | None,
        typer.Option(help="a converted model that the model was adapted from; repeatable"),
    ] = None,
    personal: Annotated[
        Path | None,
        typer.Option(help="a company's own parts, laid over the model; those in its folder always are"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of whatever is drawn")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Predict with a run's model or an exported one: classes, numbers, futures, texts or images."""
    from ..client.data.findings import Findings
    from ..client.personal import PERSONAL_FILE, lay_over_file
    from ..client.prediction import Wanted
    from ..client.prediction import predict as predicted
    from ..settings.contract import contract_file
    from .prediction_files import check_place, write
    from .progress import progress_on

    if to is not None:
        check_place(to)
    wanted = Wanted(
        source=source,
        contract=None if contract is None else contract_file(contract),
        seed=seed,
        samples=samples,
        interval=interval,
        length=length,
        temperature=temperature,
        score=score,
        labels=tuple(label or ()),
    )
    network, card = _loaded(model, round_, pretrained or [])
    own = personal or model / PERSONAL_FILE
    if personal is not None or own.is_file():
        lay_over_file(network, card, own)
        people.print(f"With the company's own parts: {own}", markup=False, highlight=False, soft_wrap=True)
    findings = Findings(source or "")
    with progress_on(people) as progress:
        task = progress.add_task("Predictions", total=None, note="")
        found = predicted(
            network, card, wanted, findings, lambda done, of: progress.update(task, completed=done, total=of)
        )
    for note in findings.notes:
        people.print(f"[yellow]input:[/] {escape(note)}", highlight=False, soft_wrap=True)
    if to is not None:
        write(found, to)
    _say(found, card, to, as_json)


def _loaded(path: Path, round_: int | None, pretrained: list[Path]) -> tuple[Denoiser, ModelCard]:
    from ..blocks.model_file import load_model, model_of
    from ..blocks.pretrained.card import CARD
    from ..blocks.pretrained.places import register
    from ..client.model_folders import home_of
    from ..client.policy_file import know_pretrained
    from ..server.models import card_of
    from ..server.run_folder import RunFolder

    for folder in pretrained:
        register(folder)
    if (path / "plan.json").is_file():
        checkpoint, card = card_of(RunFolder.existing(path), round_)
        return model_of(checkpoint.model, card), card
    if round_ is not None:
        raise InputError("--round", round_, "an exported model is of one round; name a run folder")
    if (path / CARD).is_file():
        from ..client.prediction.converted import converted_model

        return converted_model(path)
    home = home_of(path)
    if home is not None:
        know_pretrained(home)
    return load_model(path)


def _say(found: Predictions, card: ModelCard, to: Path | None, as_json: bool) -> None:
    from .prediction_files import write_csv

    if as_json:
        told = {"run": card.run, "round": card.round, "digest": card.digest, "kind": found.kind}
        where = {"predictions": list(found.records())} if to is None else {"file": str(to)}
        print(json.dumps(told | {"count": len(found)} | where))
    elif to is None:
        text = io.StringIO()
        write_csv(found, text)
        print(text.getvalue(), end="")
    else:
        people.print(f"{len(found):,} predictions ({found.kind}) in {to}", markup=False, highlight=False)
