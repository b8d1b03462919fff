"""What server and client share: the messages of a run, their transport, and what both compute from a plan.

`messages` lists every message of a run, `release` turns a plan into the mechanism and the codec of its releases,
`identity` reads key and roster, `private_file` checks the modes of a company's files, `log_text` escapes texts in
logs, and `transport` is the data plane's wire.
"""
