"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Metrics = Annotated[
    str | None, typer.Option(help="HOST:PORT for Prometheus and a health check; none means neither")
]
