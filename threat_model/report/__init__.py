"""The report: one self-contained HTML page about a run, its privacy and its audit.

`facts`, `spending`, `diagnosed` and `audited` read the run's files, `measures` knows the family's metric,
`findings` puts all into words, `figures`, `quality_figures`, `block_figures`, `audit_figures`, `images` and
`canvas` draw, `write` fills the templates. The page loads and runs nothing.
"""

from .write import write_report

__all__ = ["write_report"]
