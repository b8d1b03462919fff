"""Three statements about epsilon that are never mixed.

`conformance`: does the company's own step do what its account assumes? `certificate`: a lower bound that holds for
every mechanism with the claimed trade-off. `estimate`: what an epsilon would be if scores were Gaussian.
"""
