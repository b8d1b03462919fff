"""The report: one self-contained HTML page about a run, its privacy and its audit.

`facts`, `spending` and `audited` read the run's files, `findings` puts them into words, `figures`,
`audit_figures`, `images` and `canvas` draw, `write` fills the templates. The page loads and runs nothing.
"""

from .write import write_report

__all__ = ["write_report"]
