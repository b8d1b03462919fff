"""Models to take along: listed, compared, exported and loaded again without Flower; the page's own code runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Done, Machine, run_command
from support.families import Variant

from fedblocks.blocks import Denoiser, build_model, digest, load_model, merge, metric_of, sample_chain, split
from fedblocks.blocks.model_file import ModelCard, places, save_model
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.models import card_of, differences, export, saved_models
from fedblocks.server.own_account import planned
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("models") / "run")
    simulate(run)
    return run


def test_the_list_has_every_checkpoint_with_its_digest_and_quality(
    finished: RunFolder, tmp_path: Path
) -> None:
    """Would catch a digest of another round, and a real run shown with quality on data that it does not have."""
    shutil.copytree(finished.path, tmp_path / "runs" / "simulated")
    real = tmp_path / "runs" / "real"
    shutil.copytree(finished.path, real)
    (real / "simulation.toml").unlink()
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(finished.path, broken)
    (broken / "checkpoints" / "round-0004" / "block-1.safetensors").write_bytes(b"")
    found = saved_models(tmp_path / "runs")
    kept = {(each.run, each.round): each for each in found}
    assert {name for name, _ in kept} == {"broken", "real", "simulated"}
    assert sorted(r for name, r in kept if name == "real" and r is not None) == [0, 3, 4]
    row = finished.metrics()[4]["quality"]
    last = Checkpoint.load(finished.checkpoints).model
    for name, where in (("simulated", "heldout"), ("real", "public")):
        each = kept[name, 4]
        assert (each.measured_on, each.quality) == (where, row[where][-1])
        assert each.digest == digest(last.shared, *last.blocks).hex()
    assert "block-1.safetensors" in kept["broken", 4].problem
    assert not kept["broken", 3].problem
    with pytest.raises(InputError, match="no such folder"):
        saved_models(tmp_path / "nowhere")


def test_a_difference_is_the_norm_of_what_moved(finished: RunFolder) -> None:
    """Against differences formed here, and of a round from itself, which is none."""
    old, new = (Checkpoint.load(finished.checkpoints, r).model for r in (0, 4))
    found = differences(finished, 0, 4)
    assert [each.part for each in found] == ["shared", "block 0", "block 1"]
    assert found[0].norm == 0
    assert found[0].before == found[0].after
    for b, each in enumerate(found[1:]):
        before, after = (torch.cat([t.flatten() for t in m.blocks[b].values()]) for m in (old, new))
        assert each.norm == pytest.approx(float((after - before).norm()), rel=1e-5)
        assert each.norm > 0
        assert each.relative == pytest.approx(each.norm / float(before.norm()), rel=1e-5)
        assert each.before != each.after
    assert all(each.norm == 0 for each in differences(finished, 4, 4))
    with pytest.raises(RunError, match="there are those of rounds 0, 3, 4"):
        differences(finished, 0, 2)


@pytest.mark.parametrize("place", ["folder", "file.safetensors"])
def test_an_exported_model_is_the_runs_own(finished: RunFolder, tmp_path: Path, place: str) -> None:
    """Bit for bit, with what it is; would catch a lost tensor, other noise edges, and a file written over."""
    card, (tensors, beside) = export(finished, tmp_path / place)
    assert (tensors, beside) == places(tmp_path / place)
    model, read = load_model(tmp_path / place)
    state, own = split(model), Checkpoint.load(finished.checkpoints).model
    assert digest(state.shared, *state.blocks) == digest(own.shared, *own.blocks)
    assert read == card
    plan = finished.plan()
    assert (card.model, card.noise, card.round) == (plan.model, plan.noise, 4)
    assert model.partition.edges == plan.noise.edges
    assert card.plan == plan.digest().hex()
    assert card.quality == finished.metrics()[4]["quality"]["public"][-1]
    before = {path: path.read_bytes() for path in (tensors, beside)}
    with pytest.raises(InputError, match="exists already"):
        export(finished, tmp_path / place)
    assert {path: path.read_bytes() for path in before} == before


def test_the_guarantee_of_a_card_is_that_of_its_run(finished: RunFolder, tmp_path: Path) -> None:
    """A simulation promises nothing; a real run the plan's epsilon; the public model, or no noise: neither."""
    assert card_of(finished)[1].guarantee.startswith("None, since it was made in a simulation")
    shutil.copytree(finished.path, tmp_path / "real")
    (tmp_path / "real" / "simulation.toml").unlink()
    real = RunFolder(tmp_path / "real")
    plan = real.plan()
    epsilon = planned(plan, 5).epsilon
    said = card_of(real)[1].guarantee
    assert f"delta = {plan.delta:g}" in said
    shown = float(re.findall(r"epsilon = ([\d.]+)", said)[0])
    assert epsilon <= shown <= epsilon * 1.01
    assert "public data alone" in card_of(real, 0)[1].guarantee
    (real.path / "plan.json").write_text(plan.changed(noise_multiplier=0).model_dump_json())
    assert "no epsilon holds" in card_of(real)[1].guarantee


def test_what_is_no_model_is_refused_by_name(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a card beside another model's tensors, and a damaged file that ends in a traceback."""

    def spoiled(change: Callable[[Path, Path], object]) -> str:
        folder = tmp_path / "spoiled"
        shutil.rmtree(folder, ignore_errors=True)
        export(finished, folder)
        change(*places(folder))
        with pytest.raises(InputError) as refused:
            load_model(folder)
        return str(refused.value)

    def moved(tensors: Path, card: Path) -> None:
        state = load_file(tensors)
        name = next(name for name, tensor in state.items() if tensor.is_floating_point())
        state[name] += 1
        save_file(state, tensors)

    def fewer(tensors: Path, card: Path) -> None:
        state = load_file(tensors)
        del state[next(iter(state))]
        save_file(state, tensors)

    assert "their digest differs" in spoiled(moved)
    assert "not the tensors" in spoiled(fewer)
    assert "cannot be read" in spoiled(lambda tensors, card: tensors.write_bytes(b"PK"))
    assert "not the card" in spoiled(lambda tensors, card: card.write_text("{}"))
    assert "model.json is missing" in spoiled(lambda tensors, card: card.unlink())
    assert "model.safetensors is missing" in spoiled(lambda tensors, card: tensors.unlink())


def test_every_family_predicts_the_same_after_export(variant: Variant, tmp_path: Path) -> None:
    """Would catch a family whose network is not built again from its settings alone."""
    settings = variant.settings
    torch.manual_seed(3)
    noise = NoiseSettings(overlap=0.1)
    made: Denoiser = build_model(settings, noise).eval()
    state = split(made)
    card = ModelCard(
        version="0", run="r", round=1, rounds=1, plan="", guarantee="", model=settings,
        noise=noise.model_copy(update={"edges": made.partition.edges}), metric=metric_of(settings).name,
        digest=digest(state.shared, *state.blocks).hex(),
    )  # fmt: skip
    save_model(state, card, tmp_path / "model")
    torch.manual_seed(4)
    drawn = torch.get_rng_state()
    again, read = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), drawn)
    kind = read.model.kind
    inputs = (
        torch.rand(3, *kind.inputs)
        if kind.input_classes is None
        else torch.randint(kind.input_classes, (3, *kind.inputs))
    )
    for column, most in enumerate(kind.categories, start=-len(kind.categories)):
        inputs[:, column] = torch.randint(most, (3,)).float()
    like = torch.zeros(1, *kind.targets, dtype=torch.float32 if kind.target_classes is None else torch.long)
    one, other = (sample_chain(m, inputs, like, torch.Generator().manual_seed(0))[-1] for m in (made, again))
    assert torch.equal(one, other)
    merge(made, state.shared, *state.blocks)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_pages_python_runs_without_flower(finished: RunFolder, tmp_path: Path) -> None:
    """The lines of docs/results.md, as they stand there, in a process where neither flwr nor grpc can be imported."""
    export(finished, tmp_path / "acme")
    (code,) = python_blocks("results.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    barred = "import sys\nsys.modules['flwr'] = sys.modules['grpc'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", barred + code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[-1] == card_of(finished)[1].guarantee
    assert all(0.1 <= float(line.split()[1]) <= 1 for line in lines[:4])


def command(*words: str, cwd: Path) -> Done:
    return run_command(list(words), cwd, Machine())


def test_the_commands_answer_people_and_machines(finished: RunFolder, tmp_path: Path) -> None:
    """One JSON object on stdout; a mistake ends with 2, in one line, and writes nothing."""
    runs = str(finished.path.parent)
    listed = json.loads(command("model", "list", runs, "--json", cwd=tmp_path).stdout)["models"]
    assert [each["round"] for each in listed] == [0, 3, 4]
    told = json.loads(command("model", "diff", str(finished.path), "0", "4", "--json", cwd=tmp_path).stdout)
    assert (told["from"], told["to"], len(told["parts"])) == (0, 4, 3)
    words = ("model", "export", str(finished.path), "--format", "safetensors", "--to", "acme", "--json")
    said = json.loads(command(*words, cwd=tmp_path).stdout)
    assert said["digest"] == listed[-1]["digest"]
    assert load_model(tmp_path / "acme")[1].digest == said["digest"]
    again = command(*words, cwd=tmp_path)
    assert again.exit_code == 2
    assert "exists already" in json.loads(again.stdout)["message"]
    assert len(again.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acme"]


def test_a_card_asks_for_no_more_than_its_file_holds(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a card of a kilobyte for which many GB are taken, names that are too few, and tensors that are too
    many, each before the model is built or read."""
    export(finished, tmp_path / "model")
    card, file = tmp_path / "model/model.json", tmp_path / "model/model.safetensors"
    good = json.loads(card.read_text())
    for changed in ({"hidden_size": 8192}, {"hidden_size": 4096, "layers": 240, "mlp_ratio": 16.0}):
        card.write_text(json.dumps(good | {"model": good["model"] | changed}))
        with pytest.raises(InputError, match="larger model than"):
            load_model(tmp_path / "model")
    card.write_text(json.dumps(good | {"labels": ["one", "two"]}))
    with pytest.raises(InputError, match="labels"):
        load_model(tmp_path / "model")
    card.write_text(json.dumps(good))
    load_model(tmp_path / "model")
    save_file(load_file(file) | {f"more-{i}": torch.zeros(0) for i in range(20_000)}, file)
    with pytest.raises(InputError, match="tensors that the model of its card has not"):
        load_model(tmp_path / "model")
