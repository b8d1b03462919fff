"""Differential privacy, its accounting, and secure aggregation, without any transport.

`clipping` (by `passes`, `book_keeping`, `grouping`), `mechanisms` and `dp_sgd` make a release private over batches
from `sampling`, with noise from `source` and `randomness`; `invariance` and `denormals` check and set what the proof
assumes of the machine. `events` are releases as data, `accounting` gives their cost (by `pld` or `rdp`; `rounding`:
that of floating point), `composition` the cost of adaptively chosen runs, `adversaries` against whom it holds.
`ledger` records what a company has spent, `verification` checks it. `quantisation` turns updates into integers, of
which `secure_aggregation` opens only the sum.
"""
