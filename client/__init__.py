"""The company's side: the Flower ClientApp and what it stands on.

`company` is its home folder, `policy` its own rules, `replay_guard` the steps that it takes once,
`data` its connectors, `training` what it does with one block, in passes of the size that `batches` finds,
`rehearsal` the same before it is charged, `app` the handlers of the messages in `protocol`,
`agent` answers over the data plane, where `endpoint` says.
"""
