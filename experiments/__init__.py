"""Runs on one machine: presets, preparation, simulation and benchmarks.

`preparation` makes a run folder (public model, companies' homes), `simulation` runs it in this process,
`loopback` takes its messages over the data plane,
`partition` deals private data to companies, `presets` are the settings, `bench` measures against peers.
"""
