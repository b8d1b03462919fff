"""Shared settings: one small run that every end-to-end test builds on."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.families import VARIANTS, Variant
from support.faults import fault as fault

from fedblocks.experiments.presets import load_settings
from fedblocks.settings import SimulationSettings

torch.set_num_threads(1)
# Tests that were started in the background would hand on that Ctrl-C is ignored to the processes that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = (
    "model.hidden_size=16",
    "model.layers=2",
    "model.blocks=2",
    "model.heads=2",
    "model.patch_size=4",
    "pretraining.steps=2",
    "training.rounds=4",
    "training.sampling_rate=0.5",
    "training.expected_batch_size=20",
    "training.noise_draws=1",
)


def images_file(path: Path, n: int = 200, seed: int = 0) -> Path:
    """An .npz of random images whose mean tells the label a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    images = np.clip(rng.random((n, 8, 8)) * 0.5 + labels[:, None, None] / 20, 0, 1)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def private_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images_file(tmp_path_factory.mktemp("data") / "private.npz")


@pytest.fixture(scope="session")
def small(private_file: Path) -> SimulationSettings:
    """Five companies, two blocks of one layer, 200 private images."""
    return load_settings("digits", [*SMALL, f'data.private.source="{private_file}"'])


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Every model family, with each kind of features that it takes."""
    found: Variant = request.param
    return found
