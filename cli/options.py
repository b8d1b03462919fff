"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="tensorboard or mlflow, into files on this machine; repeatable"),
]
# Of the data plane, where nothing else is said.
PORT = 9443

Metrics = Annotated[
    str | None, typer.Option(help="HOST:PORT for Prometheus and a health check; none means neither")
]
