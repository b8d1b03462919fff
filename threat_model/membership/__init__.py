"""Was this example in the data: tests of one candidate.

`sums` has the likelihood ratio of a candidate in sums under the mechanism's own noise, `simulation` the same test at
noise, batches and rounds that no release was made for, `shadows` and `scores` the tests of a released model, and
`verdict` what follows from scores.
"""
