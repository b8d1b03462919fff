"""`fedblocks transport`: certificates of the data plane, a company's agent, and a run over it without Flower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import InputError, ProtocolError
from .options import Metrics

transport = typer.Typer(
    no_args_is_help=True, help="Messages over gRPC with mutual TLS, beside or without Flower."
)
people = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
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
    from ..protocol.names import COORDINATOR, check_company_name
    from ..protocol.transport.certificates import OwnCertificate

    if (company is None) != coordinator:
        raise InputError("--company", company, "give either a company's name or --coordinator")
    if company is not None:
        check_company_name("--company", company)
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
    from ..client.app import app, channel_of
    from ..client.company import Company
    from ..client.endpoint import Endpoint, exclusive_agent
    from ..client.models import kept_models
    from ..protocol.core_dumps import forbid_core_dumps
    from ..protocol.log_text import escape_logs
    from ..protocol.observability import observing

    forbid_core_dumps()
    escape_logs()
    company = Company.deployed(home)
    company.startable()
    context = Context(1, 1, {"company-home": str(home)}, RecordDict(), {})
    people.print(
        f"{company.name} answers; what it refuses and why is in {home / 'company.log'}",
        markup=False,
        soft_wrap=True,
    )
    endpoint = Endpoint.of(home)
    for notice in endpoint.notices():
        people.print(f"warning: {notice}", markup=False, soft_wrap=True)
    with exclusive_agent(home), observing(metrics) as seen:
        told = AgentMetrics(seen, connected=lambda: answering.connected) if seen else None
        answering = Agent(endpoint, told.counted(app) if told else app, context, run, log=company.log)
        code = answering.serve()
    if code == "done":
        company.leave(answering.served, channel_of(context))
        kept_models(company)  # judged now, when nobody waits for an answer
    if as_json:
        print(json.dumps({"company": company.name, "ended": code, "answered": answering.answered}))
    if code != "done":
        raise ProtocolError(code, answering.fault or "the data plane ended before the run")


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
    from .serving import serve_run

    def say(text: str) -> None:
        people.print(text, markup=False, highlight=False, soft_wrap=True)

    escape_logs()
    result = serve_run(RunFolder.deployable(run), folder, say, metrics, over="data-plane")
    if as_json:
        print(json.dumps(result))
