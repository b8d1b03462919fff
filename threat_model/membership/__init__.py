"""Was this example in the data: tests of one candidate, and how well they do.

`likelihood` has the likelihood ratio of a candidate's gradient in sums under the mechanism's own noise, `simulation`
the same test at noise and sampling that no run has had, `shadows` and `scores` the tests of a released model, and
`roc` what is made of scores.
"""
