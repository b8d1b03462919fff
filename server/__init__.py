"""The coordinator's side: the Flower ServerApp and the round.

`round` is one round from top to bottom, `secure_sum` the sum that it opens, `coordinator` the run's loop of rounds,
`cohort` the companies that take part, `optimizer` applies a sum to a block, `checkpoint` and `run_folder` are a run's
files, `evaluation` measures the model, `events` what a run tells its subscribers, `grid` is the in-process transport,
`stream` the data plane, `app` the ServerApp.
"""
