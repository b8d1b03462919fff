"""What leaks: attacks on block updates, their scores and the report.

`views` says what a coordinator sees, `gradients` and `token_span` what the attacker can compute, `lm_map` is
the attack, `campaign` runs many of them, `scoring` and `verdicts` judge them, `audit` is the whole; `report`
writes it down for people.
"""
