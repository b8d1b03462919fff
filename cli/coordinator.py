"""`fedblocks coordinator`: what the coordinator does on its own machine."""

import typer

coordinator = typer.Typer(no_args_is_help=True, help="The coordinator's own machine: kits, plans and runs.")
