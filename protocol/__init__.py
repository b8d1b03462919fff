"""What both sides of a run say to each other, and how it travels; server and client stand on it side by side.

`messages` lists every message of a run, `release` turns a plan into the mechanism and the codec of its releases,
`identity` keeps key and roster, `private_file` the modes of a company's files, `log_text` what a log line may hold,
and `transport` is the data plane's wire.
"""
