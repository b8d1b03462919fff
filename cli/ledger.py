"""`fedblocks account` and `fedblocks ledger`: what will be and what was spent.

None loads data. `ledger create` and `ledger accept` say what a company counts from; the others write nothing, but for
the file that `export` is given. What they compute is in `account` and `ledgers`, imported when a command needs it.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError

if TYPE_CHECKING:
    from ..client.company import Company

ledger = typer.Typer(no_args_is_help=True, help="Make, read, verify and export companies' ledgers.")
people = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Where = Annotated[Path, typer.Argument(help="a ledger, a company's home or a run folder")]
OfCompany = Annotated[str | None, typer.Option("--company", help="only this company of a run")]
Home = Annotated[Path, typer.Argument(help="the company's home folder")]
_ALONE = "Without a preset"
_FILE_WIDTH = 200  # characters


def account(
    preset: Annotated[str | None, typer.Argument(help="a preset's name or a TOML file")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds instead of the plan's")] = None,
    target_epsilon: Annotated[float | None, typer.Option(help="find the noise for this epsilon")] = None,
    spent: Annotated[
        Path | None,
        typer.Option(help="a run folder or a ledger: rounds left after it; a run also gives its plan"),
    ] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Poisson sampling", rich_help_panel=_ALONE)
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="its epsilon is wanted", rich_help_panel=_ALONE)
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="the noise for it is wanted", rich_help_panel=_ALONE)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="how many", rich_help_panel=_ALONE)] = None,
    epochs: Annotated[
        int | None, typer.Option(help="each example once an epoch", rich_help_panel=_ALONE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="batches of fixed size", rich_help_panel=_ALONE)
    ] = None,
    batch_cap: Annotated[
        int | None, typer.Option(help="most examples of a Poisson batch", rich_help_panel=_ALONE)
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="of the data set, where batches are bounded", rich_help_panel=_ALONE)
    ] = None,
    delta: Annotated[float | None, typer.Option(help="1e-5 if not given", rich_help_panel=_ALONE)] = None,
    as_json: AsJson = False,
) -> None:
    """What a plan costs, the noise for a target, and how many rounds fit or are left."""
    from .account import figures, plan_figures, planned

    numbers: dict[str, Any] = {
        "sampling_rate": sampling_rate,
        "noise_multiplier": noise_multiplier,
        "epsilon": epsilon,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "batch_cap": batch_cap,
        "examples": examples,
        "delta": delta,
    }
    given = [name for name, value in numbers.items() if value is not None]
    if preset is None and spent is None:
        if rounds is not None or target_epsilon is not None or overrides:
            raise InputError("preset", None, "--rounds, --target-epsilon and --set need a preset")
        result = figures(**(numbers | {"delta": 1e-5 if delta is None else delta}))
    elif given:
        option = f"--{given[0].replace('_', '-')}"
        raise InputError(option, numbers[given[0]], "is the plan's to say; change the plan with --set")
    else:
        result = plan_figures(planned(preset, overrides or [], rounds, target_epsilon, spent), spent)
    if as_json:
        print(json.dumps(result))
    else:
        _show_account(result)


def _show_account(result: dict[str, Any]) -> None:
    from ..privacy.accounting import shown

    table = Table(show_header=False)
    for key, value in result.items():
        if key not in ("companies", "coordinators_account", "event", "release"):
            text = shown(value) if key.startswith("epsilon") else str(value)
            table.add_row(key.replace("_", " "), escape(text))
    people.print(table)
    if "coordinators_account" in result:
        _show_own_account(result["coordinators_account"])
    if "companies" not in result:
        return
    companies = Table(title="Spent so far, and rounds of this plan that are left")
    columns = ["company", "releases", "epsilon", "delta", "ceiling", "composition", "rounds left"]
    weaker = any(row["epsilon_against_company"] != row["epsilon"] for row in result["companies"])
    if weaker:
        columns.insert(3, "against a company")
    for column in columns:
        companies.add_column(column)
    for row in result["companies"]:
        companies.add_row(
            escape(row["company"]),
            str(row["releases"]),
            shown(row["epsilon"]),
            *([shown(row["epsilon_against_company"])] if weaker else []),
            f"{row['delta']:g}",
            f"{row['ceiling']:g}",
            escape(row["composition"]),
            str(row["rounds_left"]),
        )
    people.print(companies)


def _show_own_account(rows: list[dict[str, Any]]) -> None:
    from ..privacy.accounting import shown

    table = Table(title="The coordinator's own account, from its plan and its rounds: upper limits")
    columns = ["company", "in a sum", "missing", "releases at most", "epsilon at most", "delta"]
    for column in [*columns, "by the company's signed statement"]:
        table.add_column(column)
    for row in rows:
        table.add_row(
            escape(row["company"]),
            str(row["releases_in_a_sum"]),
            str(row["times_missing"]),
            str(row["releases_at_most"]),
            shown(row["epsilon_at_most"]),
            f"{row['delta']:g}",
            _stated(row["statement"]),
        )
    people.print(table)
    people.print("Each holds where the run is the first of that company's ledger, which alone decides.")


def _stated(said: dict[str, Any] | None) -> str:
    from ..privacy.accounting import shown

    if said is None:
        return "none"
    old = ", out of date: more are in opened sums" if said["out_of_date"] else ""
    return f"{shown(said['epsilon'])} at {said['delta']:g}, {said['releases']} releases{old}"


@ledger.command("create")
def create(home: Home, as_json: AsJson = False) -> None:
    """Make a company's ledger, empty: whatever it has spent before is no longer counted. Refused if there is one."""
    company = _company(home)
    company.create_ledger()
    if as_json:
        print(json.dumps({"ledger": str(home / "ledger.sqlite"), "company": company.name}))
        return
    text = f"{company.name} counts from zero in {home / 'ledger.sqlite'}; whatever it spent before is not counted."
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@ledger.command("accept")
def accept(home: Home, as_json: AsJson = False) -> None:
    """Go on from the ledger that lies there, as from a backup: what it lacks is no longer counted.

    If steps.sqlite is lost, or older than the ledger, runs that the ledger names are over for this company.
    """
    from .ledger_tables import plain_guarantee

    company = _company(home)
    found = company.accept_ledger()
    if as_json:
        print(
            json.dumps(
                {"ledger": str(home / "ledger.sqlite"), "company": company.name} | plain_guarantee(found)
            )
        )
        return
    text = f"{company.name} counts from {found}; whatever it spent beside that is not counted."
    people.print(text, markup=False, highlight=False, soft_wrap=True)


@ledger.command("statement")
def statement(
    home: Home,
    run: Annotated[str, typer.Argument(help="a run's name, as in the ledger")],
    to: Annotated[Path, typer.Argument(help="a new file, NAME.json by the company's name")],
    as_json: AsJson = False,
) -> None:
    """Sign what a run has cost this company by its ledger, for the coordinator's report. Tells of no other run."""
    from ..privacy.accounting import finite, round_up
    from ..protocol import private_file
    from ..protocol.evaluation import evaluation_run
    from ..protocol.ledger_statement import signed

    company = _company(home)
    with company.ledger() as opened:
        rows, spent = [row for row in opened.rows() if row.run in (run, evaluation_run(run))], opened.spent()
    if not rows:
        raise InputError("run", run, "this ledger has no release of it")
    if to.name != f"{company.name}.json":
        raise InputError("to", str(to), f"must be named {company.name}.json, by the company")
    cost = finite(sum(row.epsilon_after - row.epsilon_before for row in rows))
    said = signed(
        company.member(),
        run=run,
        releases=len(rows),
        epsilon=None if cost is None else round_up(cost),
        delta=spent.delta,
        account=f"{spent.accountant}; composition: {spent.composition}",
        record=company.decisions.head().head,
    )
    try:
        private_file.create(to, said.model_dump_json(indent=2).encode())
    except FileExistsError:
        raise InputError("to", str(to), "exists already; give a new file") from None
    if as_json:
        print(said.model_dump_json())
    else:
        people.print(f"Signed {to}; the coordinator puts it into the run's statements/", markup=False)


def _company(home: Path) -> Company:
    from ..client.company import Company
    from ..client.policy import load_policy

    company = Company(home, load_policy(home / "policy.toml"))
    company.check_files()
    return company


@ledger.command("show")
def show(path: Where, company: OfCompany = None, as_json: AsJson = False) -> None:
    """Every release by row, with the epsilon after it."""
    from ..privacy.accounting import shown
    from .ledger_tables import described, find_ledgers, read_own

    copies = [read_own(found) for found in find_ledgers(path, company)]
    if as_json:
        print(json.dumps({"ledgers": [described(copy) for copy in copies]}))
        return
    for copy in copies:
        table = Table(title=f"{escape(copy.header.company)}: {escape(str(copy.spent))}")
        for column in ("row", "time (UTC)", "run", "round", "block", "release", "steps", "epsilon after"):
            table.add_column(column)
        for row in copy.rows:
            time = datetime.datetime.fromtimestamp(row.time, datetime.UTC)
            table.add_row(
                str(row.seq),
                f"{time:%Y-%m-%d %H:%M:%S}",
                escape(row.run),
                str(row.round),
                escape(row.block),
                escape(row.event.mechanism),
                str(row.event.steps),
                shown(row.epsilon_after),
            )
        # A result, on stdout; as wide as it needs where no terminal limits it, so that a file holds it whole.
        out = Console()
        (out if out.is_terminal else Console(width=_FILE_WIDTH)).print(table)


@ledger.command("verify")
def verify(path: Where, company: OfCompany = None, as_json: AsJson = False) -> None:
    """Recompute hashes and epsilons, with an independent accountant too. Exit code 3 if anything is wrong."""
    from .ledger_tables import find_ledgers, verified

    results = [verified(found) for found in find_ledgers(path, company)]
    good = all(result["ok"] for result in results)
    if as_json:
        print(json.dumps({"ok": good, "ledgers": results}))
    else:
        for result in results:
            word = "[green]verified:[/]" if result["ok"] else "[red]wrong:[/]"
            text = f"{word} {escape(result['path'])}: {escape(result['says'])}"
            people.print(text, soft_wrap=True, highlight=False)
    if not good:
        raise typer.Exit(3)


@ledger.command("export")
def export(
    path: Where,
    to: Annotated[Path, typer.Argument(help="a new file: .jsonl (JSON lines) or .csv")],
    company: OfCompany = None,
    as_json: AsJson = False,
) -> None:
    r"""Write all rows to a new file; an existing one is left alone.

    In a .csv, what a spreadsheet could take for a formula is escaped as in JSON (\u003d for =), as is a backslash.
    """
    from .ledger_tables import export_rows, find_ledgers

    rows = export_rows(find_ledgers(path, company), to)
    if as_json:
        print(json.dumps({"file": str(to), "rows": rows}))
    else:
        people.print(f"{rows} rows in {escape(str(to))}", highlight=False)
