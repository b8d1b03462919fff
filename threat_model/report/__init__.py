"""The report: one self-contained HTML page about a run, its privacy and its audit.

`facts`, `spending`, `diagnosed` and `audited` read the run's files, `measures` formats the family's metric,
`findings` writes the summary, `figures`, `quality_figures`, `block_figures`, `audit_figures`, `images` and
`canvas` draw, `write` fills the templates. The page loads no other files and runs no scripts.
"""

from .write import write_report

__all__ = ["write_report"]
