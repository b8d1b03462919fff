"""What protects a company, without any transport.

`clipping` (by `passes`, `book_keeping`, `grouping`), `mechanisms` and `dp_sgd` make a release private over batches
from `sampling`, with noise from `source` and `randomness`; `invariance` and `denormals` see to what the proof assumes
of the machine. `events` are releases as data, `accounting` says what they cost (by `pld` or `rdp`, `rounding` what
floats do), `composition` how runs add up that were chosen after looking, `adversaries` against whom, `ledger` keeps
the bill, `verification` checks it. `quantisation` turns updates into integers and `secure_aggregation` opens their
sum alone.
"""
