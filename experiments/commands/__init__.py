"""Commands about privacy, identity and transport, for people and scripts.

`cli` mounts `identity`, which makes a company's key, and from `privacy` `fedblocks account` and `fedblocks ledger`.
`account` computes plans, `ledgers` reads what companies recorded; neither knows of a terminal.
`transport` holds `fedblocks transport certificate|agent|serve`.
"""
