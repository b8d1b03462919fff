"""The company's side: the Flower ClientApp and its parts.

`company` is its home folder, `policy` its own rules, `replay_guard` records the steps that it takes only once,
`data` has its connectors, `training` trains one block, in passes of the size that `batches` finds, `rehearsal` tries
that before it is charged, `app` has the handlers of the messages in `protocol`, `agent` answers over the data plane
at the address in `endpoint`.
"""
