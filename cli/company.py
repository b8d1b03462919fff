"""`fedblocks company`: what a company does on its own machine."""

import typer

company = typer.Typer(no_args_is_help=True, help="A company's own machine: keys, kits, data and checks.")
