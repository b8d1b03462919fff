"""Ways to train a block: alone in memory, interrupted, in processes, with less memory or precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.pretrained_runs import pretrained_run
from torch import Tensor

from fedblocks.blocks import (
    BlockObjective,
    Schedule,
    build_model,
    digest,
    load_state,
    merge,
    save_state,
    split,
)
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.blocks.groups import Absent
from fedblocks.blocks.noise import Seeded
from fedblocks.blocks.single_block_training import Job, train_in_processes, train_single_block
from fedblocks.blocks.training import BlockTrainer
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.memory import training_memory
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import (
    fresh_model,
    prepare,
    public_model,
    read_public,
    schedule_of,
)
from fedblocks.experiments.simulation.pretraining import pretrain
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.settings import NoiseSettings

MODEL = ViTSettings(hidden_size=16, layers=6, blocks=3, heads=2, patch_size=4)
NOISE = NoiseSettings()


def batch(n: int = 40) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)


def job(steps: int = 6, model: ViTSettings = MODEL, **options: object) -> Job:
    schedule = Schedule(steps=steps, batch_size=8, learning_rate=1e-2, noise_draws=2, ema=0.9, **options)  # type: ignore[arg-type]
    return Job(model=model, noise=NOISE, schedule=schedule)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_state(split(build_model(MODEL, NOISE)), tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_only_the_wanted_block_is_built_and_it_predicts_as_in_the_whole_model(folder: Path) -> None:
    """Would catch another block's parameters in memory, or a block that differs from the whole model's."""
    state = load_state(folder)
    whole = build_model(MODEL, NOISE)
    merge(whole, state.shared, *state.blocks)
    model = build_model(MODEL, NOISE, only=1)
    merge(model, state.shared, state.blocks[1])
    assert [isinstance(block, Absent) for block in model.blocks] == [True, False, True]
    own = sum(p.numel() for p in whole.blocks[1].parameters())
    assert sum(p.numel() for p in model.parameters()) == own
    assert model.partition == whole.partition
    x, y = batch()
    losses = [
        BlockObjective()(m, block=1, inputs=x, targets=y, source=Seeded(torch.Generator().manual_seed(0)))
        for m in (whole, model)
    ]
    assert torch.equal(*losses)


def test_training_alone_changes_its_blocks_file_only_and_reads_no_other(folder: Path) -> None:
    """Would catch a training that needs the other blocks: their files are gone while it runs."""
    others = {b: (folder / f"block-{b}.safetensors") for b in (0, 2)}
    before = contents(folder)
    for file in others.values():
        file.rename(file.with_suffix(".away"))
    train_single_block(folder, 1, *batch(), job=job())
    for file in others.values():
        file.with_suffix(".away").rename(file)
    after = contents(folder)
    assert before.keys() == after.keys()
    assert [name for name in after if after[name] != before[name]] == ["block-1.safetensors"]


@pytest.mark.parametrize("schedule", [{}, {"gradient_checkpointing": True}])
def test_an_interrupted_training_ends_in_the_same_bits(
    folder: Path, tmp_path: Path, schedule: dict[str, bool]
) -> None:
    """Would catch anything a resume forgets: optimiser, learning rate, average, generator or step."""
    through = shutil.copytree(folder, tmp_path / "through")
    train_single_block(through, 0, *batch(), job=job(7, **schedule))

    def interrupt(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_single_block(folder, 0, *batch(), job=job(7, **schedule), checkpoint_every=2, on_step=interrupt)
    assert (folder / "training-0.pt").is_file()
    taken: list[int] = []
    train_single_block(folder, 0, *batch(), job=job(7, **schedule), checkpoint_every=2, on_step=taken.append)
    assert taken == [5, 6, 7]  # from the checkpoint after step 4
    assert contents(folder) == contents(through)


def test_a_checkpoint_of_other_settings_is_refused(folder: Path) -> None:
    def interrupt(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_single_block(folder, 0, *batch(), job=job(7), checkpoint_every=1, on_step=interrupt)
    with pytest.raises(RunError, match="other settings"):
        train_single_block(folder, 0, *batch(), job=job(8))


def test_streamed_prefix_features_are_those_of_the_whole_model(folder: Path, tmp_path: Path) -> None:
    """Would catch a wrong order of blocks, or features that reach the block differently when streamed."""
    settings = MODEL.model_copy(update={"features": "prefix"})
    x, y = batch()
    one_step = job(1, settings)
    model = build_model(settings, NOISE)
    state = load_state(folder)
    merge(model, state.shared, *state.blocks)
    model.freeze_all_but(2).train()
    trainer = BlockTrainer(model, 2, one_step.schedule)
    generator = torch.Generator().manual_seed(2)
    index = torch.randint(len(y), (8,), generator=generator)
    trainer.step(x[index], y[index], BlockObjective(), generator)
    trainer.finish()
    train_single_block(folder, 2, x, y, job=one_step)
    for name, tensor in load_state(folder).blocks[2].items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="features"):
        train_in_processes(folder, [0, 1], x, y, job=one_step, workers=2)


def test_blocks_trained_in_processes_equal_those_trained_one_after_another(
    folder: Path, tmp_path: Path
) -> None:
    """Would catch a dependence between blocks, or a generator that is not the block's own."""
    serial = shutil.copytree(folder, tmp_path / "serial")
    for block in (0, 2):
        train_single_block(serial, block, *batch(), job=job())
    train_in_processes(folder, [0, 2], *batch(), job=job(), workers=2)
    assert contents(folder) == contents(serial)


def test_missing_files_and_blocks_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="block=3"):
        train_single_block(folder, 3, *batch(), job=job())
    (folder / "block-1.safetensors").unlink()
    with pytest.raises(RunError, match="block-1"):
        train_single_block(folder, 1, *batch(), job=job())


def one_step(**options: object) -> tuple[Tensor, list[Tensor], dict[str, int]]:
    """Losses, gradients and memory of one step of a block."""
    torch.manual_seed(0)
    model = build_model(MODEL, NOISE)
    schedule = Schedule(steps=4, batch_size=40, learning_rate=1e-3, **options)  # type: ignore[arg-type]
    trainer = BlockTrainer(model, 0, schedule)
    model.freeze_all_but(0).train()
    losses: list[Tensor] = []

    def step() -> None:
        losses[:] = trainer.step(*batch(), BlockObjective(), torch.Generator().manual_seed(3))

    memory = training_memory(trainer.part.parameters(), trainer.optimizer, step)
    gradients = [p.grad for p in trainer.part.parameters() if p.grad is not None]
    return losses[1], gradients, memory


def test_gradient_checkpointing_gives_the_same_gradients_with_fewer_activations() -> None:
    losses, gradients, memory = one_step()
    less_losses, less_gradients, less = one_step(gradient_checkpointing=True)
    assert torch.equal(losses, less_losses)
    assert gradients
    for ours, theirs in zip(gradients, less_gradients, strict=True):
        assert torch.equal(ours, theirs)
    assert less["activations"] < memory["activations"] / 2


def test_bfloat16_keeps_the_loss_and_the_parameters_in_float32() -> None:
    """Would catch weights cast to bfloat16, in which small steps are lost."""
    losses, _, memory = one_step()
    rough, gradients, less = one_step(precision="bfloat16")
    assert not torch.equal(losses, rough)
    torch.testing.assert_close(rough.float(), losses, atol=0.05, rtol=0.02)
    assert rough.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in gradients)
    assert less["parameters"] == memory["parameters"]
    assert less["activations"] < memory["activations"]


def test_the_moving_average_has_its_closed_form() -> None:
    """Would catch an average that lags, or that `finish` does not put in place."""
    model = build_model(MODEL, NOISE)
    trainer = BlockTrainer(model, 0, Schedule(steps=5, batch_size=40, learning_rate=1e-2, ema=0.8))
    model.freeze_all_but(0).train()
    name = "layers.0.qkv.weight"
    weight = dict(trainer.part.named_parameters())[name]
    expected = weight.detach().clone()
    for taken in range(1, 6):
        trainer.step(*batch(), BlockObjective(), torch.Generator().manual_seed(3))
        decay = min(0.8, (1 + taken) / (10 + taken))
        expected = decay * expected + (1 - decay) * weight.detach()
    trainer.finish()
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.slow
def test_a_compiled_block_takes_the_same_step() -> None:
    """Would catch a compiled graph that differs; a machine without a C++ compiler cannot compile."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler here")
    losses, gradients, _ = one_step()
    compiled, its_gradients, _ = one_step(compile=True)
    torch.testing.assert_close(compiled, losses, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, its_gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-3)


def test_a_stacked_block_starts_from_the_one_before_it(folder: Path) -> None:
    """Would catch a stacked training from initial weights, and one at once with the block it starts from."""
    train_single_block(folder, 0, *batch(), job=job(5, schedule="stacked"))
    before = load_state(folder).blocks[0]
    train_single_block(folder, 1, *batch(), job=job(0, schedule="stacked"))
    after = load_state(folder).blocks[1]
    assert {name.replace("blocks.0.", "blocks.1."): t.sum() for name, t in before.items()} == {
        name: t.sum() for name, t in after.items()
    }
    with pytest.raises(InputError, match="schedule"):
        train_in_processes(folder, [1, 2], *batch(), job=job(schedule="stacked"), workers=2)


def test_a_trained_block_is_not_trained_again_by_the_same_job(folder: Path) -> None:
    """Would catch a resume that trains a finished block for a second time."""
    train_single_block(folder, 0, *batch(), job=job())
    once = contents(folder)
    taken: list[int] = []
    train_single_block(folder, 0, *batch(), job=job(), on_step=taken.append)
    assert contents(folder) == once
    assert not taken
    train_single_block(folder, 0, *batch(), job=job(7), on_step=taken.append)
    assert taken


PRESET = ("training.rounds=1", "pretraining.steps=8", "model.hidden_size=16", "data.private.source=digits")


def test_a_folder_of_pretrained_blocks_is_filled_in_any_order_and_a_run_starts_from_it(
    tmp_path: Path,
) -> None:
    """Would catch a block that depends on when or beside whom it was trained, or a run from other weights."""
    settings = load_settings("digits", PRESET)
    one, both = tmp_path / "one", tmp_path / "both"
    assert pretrain(settings, one, block=1)["untrained"] == [0, 2]
    done = pretrain(settings, one)
    assert done["trained"] == [0, 2]
    assert len(done["after_each_block"]) == 3
    assert pretrain(settings, one)["trained"] == []
    pretrain(settings, both, processes=2)
    assert contents(one) == contents(both)
    started = load_settings("digits", (*PRESET, f"pretraining.folder={one}"))
    run = prepare(started, tmp_path / "run")
    assert digest(*Checkpoint.load(run.checkpoints, 0).model.blocks) == digest(*load_state(both).blocks)


@pytest.mark.parametrize("features", ["raw", "prefix"])
def test_public_data_train_the_chosen_blocks_alone(features: str, tmp_path: Path) -> None:
    """In memory and block by block in files; would catch a block that moves although it was left out, one that was
    chosen and does not, and progress that counts steps which nobody takes."""
    settings = load_settings("digits", (*PRESET, f"model.features={features}", "pretraining.blocks=[1]"))
    initial = split(fresh_model(settings)).blocks
    steps: list[int] = []
    trained = split(public_model(settings, read_public(settings)[0], steps.append)).blocks
    assert steps == list(range(1, 9))
    assert settings.pretraining.total_steps(3) == 8
    done = pretrain(settings, tmp_path / "model")
    assert done["trained"] == [1]
    assert len(done["after_each_block"]) == 3
    for found in (trained, load_state(tmp_path / "model").blocks):
        assert [digest(part) == digest(own) for part, own in zip(found, initial, strict=True)] == [
            True, False, True,
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("pretraining.blocks=[]", "at least one block"),
        ("pretraining.blocks=[1,0]", "in order"),
        ("pretraining.blocks=[1,3]", "the blocks 0 to 2"),
        ("training.blocks=[3]", "the blocks 0 to 2"),
    ],
)
def test_blocks_that_are_none_are_refused_by_name(change: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as refused:
        load_settings("digits", (*PRESET, change))
    assert change.split("=")[0] in str(refused.value)


def test_stacked_blocks_are_trained_all() -> None:
    """A block that starts from the one before it would start from one that nothing has trained."""
    with pytest.raises(InputError, match=r"pretraining\.blocks.*stacked"):
        load_settings("digits", (*PRESET, "pretraining.schedule=stacked", "pretraining.blocks=[1]"))


def test_pretrained_folders_of_other_settings_are_refused(tmp_path: Path) -> None:
    """Would catch blocks of two models mixed in one folder, or a run started from a wrong model."""
    settings = load_settings("digits", PRESET)
    with pytest.raises(InputError, match="--block"):
        pretrain(settings, tmp_path / "m", block=3)
    assert not (tmp_path / "m").exists()
    pretrain(settings, tmp_path / "m", block=0)
    with pytest.raises(InputError, match="other settings"):
        pretrain(load_settings("digits", (*PRESET, "seed=5")), tmp_path / "m")
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "mine.txt").write_text("")
    with pytest.raises(InputError, match="not an empty folder"):
        pretrain(settings, tmp_path / "n")
    wider = (*PRESET, "model.hidden_size=32", f"pretraining.folder={tmp_path / 'm'}")
    with pytest.raises(InputError, match=r"pretraining\.folder"):
        prepare(load_settings("digits", wider), tmp_path / "run")
    (tmp_path / "m" / "block-1.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"pretraining\.folder"):
        prepare(load_settings("digits", (*PRESET, f"pretraining.folder={tmp_path / 'm'}")), tmp_path / "run")


@pytest.mark.parametrize("kind", ["encoder", "vision", "decoder"])
def test_blocks_of_a_pretrained_model_are_not_stacked(kind: str, tmp_path: Path) -> None:
    """Would catch pinned tensors that are overwritten by those of another block: companies have them as they were."""
    with pytest.raises(InputError, match=r"pretraining.schedule.*weights of its own"):
        pretrained_run(kind, tmp_path, pretraining={"schedule": "stacked"})


def test_a_partition_is_not_fitted_to_the_loss_of_some_blocks() -> None:
    """Would catch edges that all lie within the interval of the block that is trained."""
    some = ("noise.partition=equi-information", "pretraining.blocks=[0]")
    with pytest.raises(InputError, match=r"pretraining.blocks.*fitted to the loss of all"):
        load_settings("forecast-series", some)
    load_settings("digits", some)  # classes: a closed form, which no loss decides
    load_settings("forecast-series", (some[0],))
    edges = load_settings("forecast-series", ()).model.blocks - 1
    levels = [20.0, *(1.0 / (i + 1) for i in range(edges)), 0.03]
    load_settings("forecast-series", (*some, f"noise.edges={levels}"))


@pytest.mark.parametrize("kind", ["encoder", "vision", "decoder"])
def test_a_pretrained_model_is_trained_block_by_block_as_in_memory(kind: str, tmp_path: Path) -> None:
    """The second block reads what the first, as it was trained, makes of the public examples. Would catch features of
    the converted model, and a training that cannot stream them."""
    parts = {"schedule": "sequential", "steps": 3, "learning_rate": 1e-1}
    settings = pretrained_run(kind, tmp_path, pretraining=parts)
    result = pretrain(settings, tmp_path / "model")
    assert (result["trained"], result["untrained"]) == ([0, 1], [])
    public, _ = read_public(settings)
    generator = torch.Generator().manual_seed(settings.seed * 64 + 1)
    model, first = fresh_model(settings), load_state(tmp_path / "model").blocks[0]
    merge(model, first)
    model.measure(1, public.inputs)
    model.freeze_all_but(1).train()
    trainer = BlockTrainer(model, 1, schedule_of(settings))
    for _ in range(3):
        rows = torch.randint(len(public), (8,), generator=generator)
        trainer.step(public.inputs[rows], public.targets[rows], BlockObjective(), generator)
    found = load_state(tmp_path / "model").blocks[1]
    wanted = split(model).blocks[1]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_loss_that_reads_to_the_end_is_not_trained_block_by_block(tmp_path: Path) -> None:
    settings = pretrained_run("encoder", tmp_path, objective="mixed")
    with pytest.raises(InputError, match=r"model.objective.*blocks after it"):
        pretrain(settings, tmp_path / "model")
    assert not (tmp_path / "model").exists()
