"""The leakage audit: adversary -> view -> attack -> result -> verdict.

`adversaries` says who sees and controls what. `subject` is the run under attack, `releases` makes what it releases by
its own mechanism, `problem` is a gradient as a function of what an example consists of. `attacks` has a file for each
attack, `epsilon` the tests of the run's claims. `scoring` alone compares with the truth; `results` is what all of
them report, `audit_file` how it is stored and judged by a `gate`, `sentences` how it is said. `auditing` runs it all,
`report` shows it.
"""
