"""The company's side: the Flower ClientApp and what it stands on.

`protocol` lists every message a company answers, `company` is its home folder, `policy` its own rules,
`data` its connectors, `training` what it does with one block, in passes of the size that `batches` finds, `rehearsal`
the same before it is charged, `app` the handlers,
`agent` answers over the data plane, where `endpoint` says.
"""
