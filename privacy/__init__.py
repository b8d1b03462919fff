"""What protects a company, without any transport.

`clipping`, `mechanisms` and `dp_sgd` make a release private, `accounting` says what it costs, `ledger` keeps the
bill, `randomness` draws noise from AES-CTR, `quantisation` turns updates into integers and
`secure_aggregation` opens their sum alone.
"""
