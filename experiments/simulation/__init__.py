"""The main job: several companies simulated on one machine.

`preparation` makes the run folder (`partition` deals the data, `pretraining` trains the public model block by
block), `simulate` runs it (over `loopback` if wanted, with the failures that `dropout` injects), `reference` and
`controls` are the runs to compare with, `diagnosing` measures what each block adds.
"""
