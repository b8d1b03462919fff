"""`fedblocks company`: what a company does on its own machine before a run, and to see whether it is ready."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
    say(f"  1. read it, and set {name}'s own rules (epsilon_ceiling and delta first)")
    say(f"  2. fedblocks company import SOURCE {quoted} --contract contract.toml --model PRESET")
    say(f"  3. fedblocks ledger create {quoted}")
    say(f"  4. fedblocks company check {quoted}")
