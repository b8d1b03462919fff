"""`fedblocks convert`: a checkpoint of Hugging Face's format, cut into blocks that companies adapt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

people = Console(stderr=True)


def convert(
    model_dir: Annotated[
        Path,
        typer.Argument(help="a folder with config.json and model.safetensors; nothing is downloaded or run"),
    ],
    blocks: Annotated[int, typer.Option(min=1, help="must divide the model's layers")],
    to: Annotated[Path | None, typer.Option(help="a new folder; none means NAME-BLOCKS-blocks here")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="a folder that peft wrote: its low-rank additions become part of the model"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Cut a pretrained model into blocks, which together compute exactly what it computes."""
    from ..blocks.pretrained.convert import convert as write

    folder = to or Path(f"{model_dir.resolve().name}-{blocks}-blocks")
    card = write(model_dir, blocks, folder, adapter)
    if as_json:
        print(
            json.dumps({"folder": str(folder), "digest": card.digest, "card": card.model_dump(mode="json")})
        )
        return

    def say(text: str) -> None:
        people.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{card.model_class}, {card.kind}: {card.layers} layers in {card.blocks} blocks, {card.dtype}")
    say(f"Digest, by which plans and policies name it: {card.digest}")
    say("Everybody who converts the same checkpoint into as many blocks gets this digest.")
    print(folder)
