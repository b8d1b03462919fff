"""The command line, a module a group of commands; `main` is its entry point.

A command's heavy imports wait until it runs.
"""

from .main import app, main

__all__ = ["app", "main"]
