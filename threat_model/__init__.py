"""The leakage audit: attacks on block updates, their scores and the report.

`views` are the observations of a coordinator, `gradients` and `token_span` what the attacker computes, `lm_map` is
the attack, `campaign` runs many of them, `scoring` and `verdicts` evaluate them, `audit` combines these; `report`
writes the HTML report.
"""
