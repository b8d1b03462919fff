"""`fedblocks transport`: certificates of the data plane, a company's agent, and a run over it without Flower."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import InputError, ProtocolError

transport = typer.Typer(
    no_args_is_help=True, help="Messages over gRPC with mutual TLS, beside or without Flower."
)
people = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Metrics = Annotated[
    str | None, typer.Option(help="HOST:PORT for Prometheus and a health check; none means neither")
]
Home = Annotated[Path, typer.Argument(help="the company's home: policy.toml, data, ledger, and transport/")]


@transport.command("certificate")
def certificate(
    folder: Annotated[
        Path, typer.Argument(help="HOME/transport of a company, or the coordinator's own folder")
    ],
    company: Annotated[str | None, typer.Option(help="the company's name in its policy")] = None,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="the coordinator's own")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a private key and a certificate. The key stays; the certificate goes to the other side."""
    from ..client.policy import COMPANY_NAME
    from ..protocol.transport.certificates import COORDINATOR, OwnCertificate

    if (company is None) != coordinator:
        raise InputError("--company", company, "give either a company's name or --coordinator")
    if company is not None and not re.fullmatch(COMPANY_NAME, company):
        rule = "expected a policy's name: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first"
        raise InputError("--company", company, rule)
    OwnCertificate.create(COORDINATOR if company is None else company).save(folder)
    made = folder / "own.pem"
    print(json.dumps({"certificate": str(made)}) if as_json else made)


@transport.command("agent")
def agent(
    home: Home,
    run: Annotated[str, typer.Option(help="answer this run alone; none means whichever runs")] = "",
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Answer the coordinator that HOME/transport names, until its run is over."""
    from flwr.app import Context, RecordDict

    from ..client.agent import Agent
    from ..client.agent_metrics import AgentMetrics
    from ..client.app import app
    from ..client.company import Company
    from ..client.endpoint import Endpoint, exclusive_agent
    from ..protocol.log_text import escape_logs
    from ..protocol.observability import observing

    escape_logs()
    company = Company.deployed(home)
    company.check_files()
    context = Context(1, 1, {"company-home": str(home)}, RecordDict(), {})
    people.print(
        f"{company.name} answers; what it refuses and why is in {home / 'company.log'}", markup=False
    )
    with exclusive_agent(home), observing(metrics) as seen:
        told = AgentMetrics(seen, connected=lambda: answering.connected) if seen else None
        answer = told.counted(app) if told else app
        answering = Agent(Endpoint.of(home), answer, context, run, log=company.log)
        code = answering.serve()
    if as_json:
        print(json.dumps({"company": company.name, "ended": code, "answered": answering.answered}))
    if code != "done":
        raise ProtocolError(code, "the data plane ended before the run")


@transport.command("serve")
def serve(
    run: Annotated[Path, typer.Argument(help="a prepared run")],
    folder: Annotated[Path, typer.Argument(help="the coordinator's data plane folder")],
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Coordinate a prepared run with the companies that dial in."""
    from ..protocol.log_text import escape_logs
    from ..server.run_folder import RunFolder
    from ..server.run_lock import exclusive
    from ..server.stream import ServiceSettings

    escape_logs()
    prepared, settings = RunFolder.deployable(run), ServiceSettings.load(folder)
    with exclusive(prepared.path):  # before the port is taken
        _serve(prepared, settings, folder, metrics, as_json)


def _serve(prepared: Any, settings: Any, folder: Path, metrics: str | None, as_json: bool) -> None:
    from ..protocol.observability import observing
    from ..server.coordinator import coordinate
    from ..server.events import Event, RoundFinished
    from ..server.run_metrics import RunMetrics
    from ..server.stream import StreamGrid

    plan = prepared.plan()
    service = settings.service(folder, plan.run)
    service.start(settings.listen)
    people.print(f"Listening on {settings.listen} for {', '.join(service.pinned.companies)}")

    def say(event: Event) -> None:
        if isinstance(event, RoundFinished):
            people.print(f"round {event.round}: {event.row.get('status', 'public model')}", highlight=False)

    try:
        with observing(metrics) as seen:
            told = RunMetrics.of(seen, plan, service) if seen else None
            grid = StreamGrid(service)
            coordinate(
                told.timed(grid) if told else grid,
                prepared,
                [say, *([told] if told else [])],
                wait=settings.gather,
            )
    finally:
        service.close()
    if as_json:
        rows = prepared.metrics()
        done = sum(row.get("status") == "done" for row in rows)
        print(json.dumps({"folder": str(prepared.path), "rounds": rows[-1]["round"], "rounds_done": done}))
