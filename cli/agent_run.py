"""`fedblocks agent up`, `status`, `pending`, `approve` and `deny`: a company's agent that runs unattended."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError, ProtocolError
from .agent import agent, people
from .options import Metrics

if TYPE_CHECKING:
    from ..client.approvals import Request

_LOOK_EVERY = 0.5
Decision = Literal["approved", "denied"]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Home = Annotated[Path, typer.Argument(help="the company's home folder")]
RunName = Annotated[
    str | None, typer.Argument(help="the run's name, as `agent pending` shows it, or its plan's digest")
]
OfPlan = Annotated[
    str | None,
    typer.Option(
        help="in place of RUN: every run of this plan.json, whatever it is called, before it asks too"
    ),
]
EveryRun = Annotated[bool, typer.Option("--every-run", help="every run of RUN's plan, whatever it is called")]


def say(text: str) -> None:
    """A line for people, with nothing in it taken for markup."""
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@agent.command("up")
def up(
    home: Home,
    json_log: Annotated[bool, typer.Option("--json-log", help="company.log in JSON lines")] = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Answer the coordinator, run after run, until this process is told to end; reconnects for ever."""
    from ..client.company_log import use_json
    from ..client.daemon import Daemon
    from ..protocol.core_dumps import forbid_core_dumps
    from ..protocol.log_text import escape_logs
    from ..protocol.observability import observing

    forbid_core_dumps()
    escape_logs()
    use_json(json_log)
    with observing(metrics) as seen, Daemon(home, seen, say, json_log=json_log) as daemon:
        name = daemon.start()
        say(f"{name} answers run after run; what it decides and why is in {home / 'company.log'}")
        code = daemon.run()
    if as_json:
        print(json.dumps({"company": name, "ended": code, "runs": daemon.runs}))
    if code != "stopped":
        raise ProtocolError(code, f"the agent cannot go on; {home / 'company.log'} says more")


@agent.command("status")
def status(home: Home, as_json: AsJson = False) -> None:
    """Whether the agent runs, is connected, and in which run; what the company has spent."""
    from ..client.agent_status import status_of
    from ..client.company import Company

    found = status_of(Company.deployed(home))
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        say(f"{key}: {'none' if value is None else value}")


@agent.command("pending")
def pending(
    home: Home,
    wait: Annotated[bool, typer.Option("--wait", help="until a run waits for a decision")] = False,
    as_json: AsJson = False,
) -> None:
    """The runs that wait for a decision: what each would train, cost this company's ledger, and send."""
    from ..client.company import Company
    from ..client.terms_in_words import described, projected

    company = Company.deployed(home)
    while True:
        waiting = [each for each in company.requests.all() if each.decision == "pending"]
        if waiting or not wait:
            break
        time.sleep(_LOOK_EVERY)
    if as_json:
        listed: list[dict[str, Any]] = [
            {"run": each.run, "digest": each.digest, "asked": each.asked, **projected(company, each.offered)}
            for each in waiting
        ]
        print(json.dumps({"company": company.name, "pending": listed}))
        return
    if not waiting:
        say("No run waits for a decision.")
    for each in waiting:
        for line in described(company, each):
            say(line)


@agent.command("approve")
def approve(
    home: Home,
    run: RunName = None,
    plan: OfPlan = None,
    every_run: EveryRun = False,
    by: Annotated[str | None, typer.Option(help="who decides; none means the user of this machine")] = None,
    why: Annotated[str, typer.Option(help="for the company's own record")] = "",
    as_json: AsJson = False,
) -> None:
    """Let the company take part in a run, or in every run of a plan (each still waits if `approval` is always)."""
    _decide(home, run, plan, every_run, "approved", by, why, as_json)


@agent.command("deny")
def deny(
    home: Home,
    why: Annotated[str, typer.Option(help="for the company's own record; it does not leave the company")],
    run: RunName = None,
    plan: OfPlan = None,
    every_run: EveryRun = False,
    by: Annotated[str | None, typer.Option(help="who decides; none means the user of this machine")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep the company out of a run, also of one that it takes part in, or out of every run of a plan."""
    _decide(home, run, plan, every_run, "denied", by, why, as_json)


def _decide(
    home: Path,
    run: str | None,
    plan: str | None,
    every_run: bool,
    decision: Decision,
    by: str | None,
    why: str,
    as_json: bool,
) -> None:
    decided = decide(home, run, decision, plan=plan, every_run=every_run, by=by, why=why)
    every_run = every_run or plan is not None
    if as_json:
        told = {"run": decided.run, "digest": decided.digest, "decision": decision, "by": decided.by}
        print(json.dumps(told | ({"every_run_of": decided.terms} if every_run else {})))
        return
    what = f"every run of the plan of {decided.run}" if every_run else decided.run
    say(f"{what}: {decision} by {decided.by}. The agent answers so from the coordinator's next message on.")


def decide(
    home: Path,
    run: str | None,
    decision: Decision,
    *,
    plan: str | None = None,
    every_run: bool = False,
    by: str | None = None,
    why: str = "",
) -> Request:
    """Decide about a run, or about every run of a plan, and put it on record.

    Raises: InputError where no request, or more than one, is meant.
    """
    from ..client.company import Company
    from .given_plan import plan_of

    if (run is None) == (plan is None):
        raise InputError("RUN", run, "give the name of a run, or --plan FILE")
    company = Company.deployed(home)
    who = by or getpass.getuser()
    company.decisions.check()  # what cannot be put on record is not decided
    requests = company.requests
    if plan is not None:
        decided, every_run = requests.decide_plan(plan_of(plan), decision, by=who, why=why), True
    elif every_run:
        decided = requests.decide_plan(requests.named(str(run)).offered, decision, by=who, why=why)
    else:
        decided = requests.decide(str(run), decision, by=who, why=why)
    about = {"every_run_of": decided.terms} if every_run else {}
    company.decisions.write(decision, run=decided.run, by=who, why=why, **about)
    return decided
