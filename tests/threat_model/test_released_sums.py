"""The sums that a run has opened hold the noise that was promised, whatever code is audited afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fedblocks.blocks.examples import Examples
from fedblocks.client.company import Company
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy import dp_sgd
from fedblocks.privacy.clipping import ClippedSum
from fedblocks.privacy.randomness import Randomness
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.attacks.released_sums import ATTACK
from fedblocks.threat_model.epsilon.defects import noise_times
from fedblocks.threat_model.epsilon.seams import replaced
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject

MECHANISMS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "every block in every round": ({"assignment": "all"}, {}),
    "local steps and a moving clip": ({"local_steps": 3}, {"clip_quantile": 0.5}),
    "correlated noise": ({"batches": "epochs", "local_steps": 4, "sampling_rate": 0.25, "noise_bands": 2}, {}),
    "shares of noise": ({}, {"mode": "secure_step"}),
}  # fmt: skip


def prepared(
    small: SimulationSettings, folder: Path, training: dict[str, object], privacy: dict[str, object]
) -> RunFolder:
    changed = small.model_dump()
    changed["training"] |= {"rounds": 4} | training
    changed["privacy"] |= privacy
    return prepare(SimulationSettings.model_validate(changed), folder / "run")


@pytest.fixture(scope="module")
def begun(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run before its first round, of which each test has a copy."""
    return prepared(small, tmp_path_factory.mktemp("begun"), {}, {})


@pytest.fixture
def run(begun: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(begun.path, tmp_path / "run")))


def results(run: RunFolder) -> dict[str, Result]:
    subject = Subject.of(run)
    assert ATTACK.applies(subject) is None
    return {each.statistic: each for each in ATTACK.run(subject) if isinstance(each, Result)}


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_sums_of_a_sound_run_come_out_again(name: str, small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a repetition with other labels, batches or states, and a mechanism whose noise has another size."""
    run = prepared(small, tmp_path, *MECHANISMS[name])
    simulate(run)
    found = results(run)
    assert {each.outcome for each in found.values()} == {"held"}
    assert len(found) == 4


@contextmanager
def noise_times_after(round_: int, factor: float) -> Iterator[None]:
    """Every fifth call is a round's first, of five companies."""
    gaussian, calls = dp_sgd.add_gaussian_noise, [0]

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> torch.Tensor:
        calls[0] += 1
        late = calls[0] > 5 * round_
        return gaussian(clipped, noise_multiplier * (factor if late else 1.0), randomness)

    with replaced(dp_sgd, "add_gaussian_noise", add):
        yield


@contextmanager
def noise_of_the_round_before() -> Iterator[None]:
    """One company's noise is the same in all rounds."""
    gaussian = dp_sgd.add_gaussian_noise
    original = Company.randomness

    def randomness(self: Company, *labels: str | int) -> tuple[str, Randomness]:
        release, fresh = original(self, *labels)
        fresh.__dict__["owner"] = self.name
        return release, fresh

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> torch.Tensor:
        if randomness.__dict__["owner"] == "company-1":
            randomness = Randomness.from_seed(0, "the same")
        return gaussian(clipped, noise_multiplier, randomness)

    with replaced(Company, "randomness", randomness), replaced(dp_sgd, "add_gaussian_noise", add):
        yield


@contextmanager
def no_noise_for_the_first_values() -> Iterator[None]:
    """These are most of the first tensor: of the modulation's biases."""
    gaussian = dp_sgd.add_gaussian_noise

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> torch.Tensor:
        noisy = gaussian(clipped, noise_multiplier, randomness)
        noisy[:80] = clipped.vector[:80]
        return noisy

    with replaced(dp_sgd, "add_gaussian_noise", add):
        yield


FAULTS: dict[str, tuple[Callable[[], AbstractContextManager[None]], str]] = {
    "less noise": (lambda: noise_times(0.9), "least noise variance in an opened sum / promised"),
    "less noise late": (lambda: noise_times_after(3, 0.5), "least noise variance in an opened sum / promised"),
    "one company's noise again": (noise_of_the_round_before, "correlation of noise in two opened sums"),
    "a tensor without": (
        no_noise_for_the_first_values, "least noise variance in a tensor of an opened sum / promised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_was_in_the_run_alone_is_found(name: str, run: RunFolder) -> None:
    """Would catch an audit that tests the code of today and believes the sums of yesterday: the run is made by faulty
    code, and audited without it."""
    planted, statistic = FAULTS[name]
    with planted():
        simulate(run)
    found = results(run)
    assert found[statistic].outcome == "refuted", found[statistic]
    assert found["opened sums that come out again"].outcome == "inconclusive"


def test_data_that_have_changed_since_refute_nothing(run: RunFolder) -> None:
    """Would catch gradients, left in a sum because they cannot be made again, that are taken for its noise."""
    simulate(run)
    for home in run.homes():
        data = Examples.load(home / "data.npz")
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(data)))
        Examples(data.inputs, data.targets[order]).save(home / "data.npz")
    found = results(run)
    assert found["opened sums that come out again"].outcome == "inconclusive"
    assert "refuted" not in {each.outcome for each in found.values()}


def test_without_a_transcript_it_does_not_apply(run: RunFolder) -> None:
    simulate(run)
    shutil.rmtree(run.releases)
    assert ATTACK.applies(Subject.of(run)) == "the run has kept no transcript (releases/)"
