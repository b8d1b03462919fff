"""The Python interface gives what the command line gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from fedblocks import audit, load_run, resume, simulate
from fedblocks.blocks import digest
from fedblocks.blocks.examples import Examples
from fedblocks.errors import InputError, RunError
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.events import Event, RoundFinished, RunFinished, RunStarted
from fedblocks.server.run_folder import RunFolder


def small_run(private_file: Path) -> dict[str, object]:
    found: dict[str, object] = {"data.private.source": str(private_file)}
    for text in SMALL:
        key, _, value = text.partition("=")
        found[key] = float(value) if "." in value else int(value)
    return found


@pytest.fixture(scope="module")
def simulated(private_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[Event]]:
    """A run under another epsilon than the preset's, and what it told while it ran; nobody changes it."""
    events: list[Event] = []
    chosen = small_run(private_file) | {"privacy.epsilon": 3.0}
    folder = tmp_path_factory.mktemp("simulated")
    return simulate("digits", chosen, runs_dir=folder, subscribers=[events.append]), events


def public_model(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints, 0).model
    return digest(model.shared, *model.blocks)


def test_simulate_load_resume_and_audit(simulated: tuple[RunFolder, list[Event]], tmp_path: Path) -> None:
    """Would catch an interface that loses overrides, rounds or results on the way."""
    made, events = simulated
    run = RunFolder(Path(shutil.copytree(made.path, tmp_path / made.path.name)))
    assert [event.round for event in events if isinstance(event, RoundFinished)] == [0, 1, 2, 3, 4]
    assert (events[0], events[-1]) == (RunStarted(rounds=4, done=0), RunFinished(rounds=4))
    assert run.settings().privacy.epsilon == 3.0
    again, resumed = load_run(run.path), list[Event]()
    assert resume(again, subscribers=[resumed.append])["rounds_done"] == 4
    assert resumed == [RunStarted(rounds=4, done=4), RunFinished(rounds=4)]
    assert audit(again, minutes=0.05, block=0).run == run.path.name
    assert again.read_json("audit.json") is not None


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        simulate("digits", {"privacy.epsilon": -1.0}, runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)


def test_a_run_computes_on_one_core_and_leaves_the_callers_setting(
    private_file: Path, tmp_path: Path
) -> None:
    """Would catch bits that follow the cores of a notebook's machine, and a notebook left with one core."""
    chosen, cores = small_run(private_file) | {"training.rounds": 1}, list[int]()
    try:
        torch.set_num_threads(2)
        first = simulate(
            "digits",
            chosen,
            runs_dir=tmp_path,
            subscribers=[lambda event: cores.append(torch.get_num_threads())],
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(cores) == {1}
    assert public_model(first) == public_model(simulate("digits", chosen, runs_dir=tmp_path))


def test_a_loaded_run_gives_the_model_that_was_judged_and_tables_of_what_was_recorded(
    simulated: tuple[RunFolder, list[Event]], private_file: Path
) -> None:
    """Would catch another round's model, a round that a table lacks or names wrongly, and ledgers of other rows."""
    run = load_run(simulated[0].path)
    result = run.read_json("result.json")
    assert result is not None
    frame = run.frame()
    assert frame["round"].tolist() == [0, 1, 2, 3, 4]
    assert frame["companies"].tolist() == [0, 5, 5, 5, 5]
    assert frame["accuracy_heldout"].tolist() == [row["quality"]["heldout"][-1] for row in run.metrics()]
    assert frame["accuracy_heldout_0"].tolist() == [row["quality"]["heldout"][0] for row in run.metrics()]
    model, card = run.model()
    heldout = Examples.load(run.evaluation / "heldout.npz")
    generator = torch.Generator().manual_seed(run.settings().seed)
    assert model.chain_quality(heldout.inputs, heldout.targets, generator)[-1] == result["accuracy"]
    assert (card.round, run.model(0)[1].round) == (4, 0)
    ledgers = run.ledgers()
    assert ledgers.groupby("company").size().to_dict() == {f"company-{i}": 4 for i in range(5)}
    spent = ledgers.groupby("company")["epsilon_after"].max().to_dict()
    assert spent == pytest.approx(result["epsilon"], rel=1e-3)
    assert run.audit() is None
    labels = run.predict(str(private_file)).columns["label"]
    assert len(labels) == 200


def test_nothing_that_only_logs_or_evaluates_changes_a_results_bits(
    simulated: tuple[RunFolder, list[Event]], private_file: Path, tmp_path: Path
) -> None:
    """Would catch noise, batches or sums that depend on how often or on what a run is judged, or what it keeps."""
    quiet = {
        "training.evaluate_every": 3,
        "training.message_timeout": 50.0,
        "data.test_examples": 20,
        "releases": False,
        "workers": 1,
        "name": "other",
        "privacy.epsilon": 3.0,
    }
    runs = [simulated[0], simulate("digits", small_run(private_file) | quiet, runs_dir=tmp_path)]
    first, second = ([digest(part) for part in Checkpoint.load(run.checkpoints).model.blocks] for run in runs)
    assert first == second
    for column in ("release_id", "epsilon_after", "event"):
        assert runs[0].ledgers()[column].tolist() == runs[1].ledgers()[column].tolist()
