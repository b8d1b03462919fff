"""The coordinator's side: the Flower ServerApp and the round.

`round` is one round from top to bottom, `coordinator` the run's loop of rounds, `cohort` the companies that take
part, `optimizer` applies a sum to a block, `checkpoint` and `run_folder` are a run's files, `evaluation` measures the
model, `grid` is the in-process transport, `stream` the data plane, `app` the ServerApp.
"""
