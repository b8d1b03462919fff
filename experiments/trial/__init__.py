"""A trial: companies and a coordinator as real processes on one machine, set up from kits as on machines apart.

`sources` cuts a preset's private data into a file for each company, `preparing` makes homes and a run from kits,
files and public data, `processes` starts and ends the commands that people would start, and `running` follows a run.
"""
