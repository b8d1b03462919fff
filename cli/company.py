"""`fedblocks company`: what a company does on its own machine before a run, and to see whether it is ready."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..protocol.log_text import entry

company = typer.Typer(no_args_is_help=True, help="A company's own machine: keys, kits, data and checks.")
people = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Home = Annotated[Path, typer.Argument(help="the company's home folder")]


def say(text: str) -> None:
    """A line for people, with nothing in it taken for markup."""
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@company.command("init")
def init(
    home: Annotated[Path, typer.Argument(help="a new folder, readable by its owner alone")],
    name: Annotated[str, typer.Option(help="the company's name, as in its certificate and the roster")],
    epsilon_ceiling: Annotated[float, typer.Option(help="epsilon of all runs together")] = 8.0,
    delta: Annotated[float, typer.Option(help="well below 1 / your number of examples")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Make a company's home with a commented policy.toml. Nothing that is there is overwritten."""
    from ..client.home import make_home

    policy = make_home(home, name, epsilon_ceiling=epsilon_ceiling, delta=delta)
    if as_json:
        print(json.dumps({"home": str(home), "policy": str(policy), "company": name}))
        return
    quoted = shlex.quote(str(home))
    say(f"Made {policy}. Next:")
    for number, step in enumerate(
        (
            f"read it, and set {name}'s own rules (epsilon_ceiling and delta first)",
            f"fedblocks company request {quoted} --company {name}, and send the request to the provisioner",
            f"fedblocks company install KIT {quoted} --fingerprint FINGERPRINT",
            f"fedblocks company import SOURCE {quoted} --contract contract.toml --model PLAN",
            f"fedblocks ledger create {quoted}",
            f"fedblocks company check {quoted} --plan PLAN",
        ),
        start=1,
    ):
        say(f"  {number}. {step}")


@company.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="a file, a folder or a database's URL; see docs/data.md")],
    home: Home,
    contract: Annotated[Path | None, typer.Option(help="how to read it; else that of --model's data")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="preset, TOML file or plan that it is for; a table's contract needs none"),
    ] = None,
    query: Annotated[str | None, typer.Option(help="of a database, in place of the contract's")] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(help="of a database: a file of mode 600 with the password in its first line"),
    ] = None,
    match_contrast: Annotated[
        bool | None, typer.Option(help="give all images one mean and deviation; else as --model has it")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="share that is never trained on, for judging models; 0 holds nothing out")
    ] = 0.1,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of data.npz")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the company's own data into HOME/data.npz, hold some out in HOME/held_out.npz, and say what was left out.

    A database's password comes from PGPASSWORD, from FEDBLOCKS_DATABASE_PASSWORD or from --password-file.
    """
    from ..client.data.tables.database import password_file as password_in
    from ..client.data.tables.database import using_password
    from ..client.importing import import_data
    from .company_source import source_of

    password = None if password_file is None else password_in(password_file)
    told = source_of(source, contract, model, query, match_contrast)
    with using_password(password):
        found = import_data(
            home, told.source, told.model, told.match_contrast, replace=replace, held_out=held_out
        )
    if as_json:
        print(json.dumps({"data": str(home / "data.npz"), "declared": found.declared} | found.to_json()))
        return
    for name, value in found.findings.facts.items():
        say(f"{name}: {value}")
    for note in found.findings.notes:
        say(f"note: {note}")
    apart = f", and {found.held_out:,} held out in held_out.npz" if found.held_out else ""
    say(f"Wrote {home / 'data.npz'}: {found.examples:,} examples{apart}, fingerprint {found.fingerprint}")
    if found.declared:
        say(f"Declared them as [data] in {home / 'policy.toml'}")


@company.command("check")
def check(
    home: Home,
    plan: Annotated[
        str | None,
        typer.Option(help="plan.json, run folder, preset or TOML file: could this company run it?"),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="the provisioner's, as read out over the phone")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="do not try the coordinator's address")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for everything that would stop a run, and say how to mend it; exit code 2 if something would."""
    from ..client.doctor import examine
    from .given_plan import plan_of

    offered = None if plan is None else plan_of(plan)
    found = examine(home, offered, fingerprint=fingerprint, connect=not offline)
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    if as_json:
        told = {"ok": not counts["error"], "errors": counts["error"], "warnings": counts["warning"]}
        print(json.dumps(told | {"findings": [vars(finding) for finding in found]}))
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    for finding in found:
        text = f"[{colours[finding.level]}]{finding.level}:[/] {escape(entry(str(finding)))}"
        people.print(text, highlight=False, soft_wrap=True)
    say(" and ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items()))
    if counts["error"]:
        raise typer.Exit(2)


@company.command("personalise")
def personalise(
    home: Home,
    run: Annotated[str, typer.Option("--run", help="a run whose final model came to this company")],
    as_json: AsJson = False,
) -> None:
    """Train this company's own parts of a model on its own examples. They stay in its home: no message has them."""
    from ..client.company import Company
    from ..client.personal import personalise_kept
    from ..client.policy import load_policy

    card, path, effect = personalise_kept(Company(home, load_policy(home / "policy.toml")), run)
    if as_json:
        print(json.dumps({"run": card.run, "file": str(path), "metric": card.metric} | vars(effect)))
        return
    say(f"Wrote {path}. Keep it like the data: it may repeat examples that it was trained on.")
    if effect.examples:
        common, own = ("no number" if v is None else f"{v:.4g}" for v in (effect.common, effect.personal))
        say(f"{card.metric} on {effect.examples:,} held-out examples: {common} before, {own} with own parts")
    else:
        say("No examples are held out, so what it is worth is not known: import them with --held-out")


@company.command("models")
def models(home: Home, as_json: AsJson = False) -> None:
    """The final models that came to this company, and what they are worth on its held-out examples."""
    from ..client.company import Company
    from ..client.models import kept_models
    from ..client.policy import load_policy

    found = kept_models(Company(home, load_policy(home / "policy.toml")))
    if as_json:
        print(json.dumps({"home": str(home), "models": [vars(each) for each in found]}))
        return
    table = Table("run", "round", "held out", "public model", "final model", "with own parts", "folder")
    for each in found:
        values = (each.public, each.final, each.personal)
        figures = ["" if v is None else f"{each.metric} {v:.4g}" for v in values]
        told = [f"[red]{escape(entry(each.problem))}[/]", "", ""] if each.problem else figures
        table.add_row(escape(each.run), str(each.round), f"{each.examples:,}", *told, escape(each.folder))
    people.print(table)
    for each in found:
        if each.by_class:
            classes = Table(f"class, in {escape(each.run)}", "held out", "public model", "final model")
            for name, own in each.by_class.items():
                told = ["" if own[which] is None else f"{own[which]:.4g}" for which in ("public", "final")]
                classes.add_row(escape(entry(name)), f"{own['examples']:,}", *told)
            people.print(classes)
    if not found:
        say(f"No model has come to {home} yet; the coordinator sends it after a run's last round.")
