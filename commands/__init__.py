"""Commands about privacy, for people and scripts.

`privacy` is what `cli` mounts: `fedblocks account` and `fedblocks ledger`. `account` computes plans, `ledgers`
reads what companies recorded; neither knows of a terminal.
"""
