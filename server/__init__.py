"""The coordinator's side: the Flower ServerApp and the round.

`round` is one round from top to bottom, `secure_sum` the sum that it opens, `coordinator` the run around it,
`cohort` who takes part, `optimizer` how a sum moves a block, `checkpoint` and `run_folder` what is kept,
`evaluation` how good the model is, `events` what a run tells its subscribers, `grid` the in-process transport,
`stream` the data plane, `app` the ServerApp.
"""
