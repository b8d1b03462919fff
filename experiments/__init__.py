"""Runs on one machine: presets, preparation, simulation and benchmarks.

`simulation` prepares and runs several companies in this process, `presets` are its settings, `interface` is the same
for Python, `bench` measures against peers, `baselines` are other ways to train.
"""
