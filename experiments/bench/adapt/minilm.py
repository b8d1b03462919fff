"""MiniLM taught to tell 12 subjects apart: in three blocks, each trained alone, against end-to-end fine-tuning.

1,200 public texts of `documentation`, judged on 2,000 of the others. End to end, all of the encoder trains with the
same kind of head; each block takes as many steps, with the same batches, at a tenth of the next one's rate, or at one
rate for all (`blocks_at_one_rate`). `last_block` trains that alone, and `linear_probe` nothing but a head on the
frozen encoder. Memory is that of a step, by part (`experiments.memory`): parameters, gradients, AdamW's state and
activations; beside the active block the frozen rest of the model is counted too, though it could be left on disk.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....blocks import BlockObjective, Schedule, build_model
from ....blocks.examples import Examples
from ....blocks.families.pretrained_text_classifier import (
    PretrainedTextClassifier,
    PretrainedTextClassifierSettings,
)
from ....blocks.training import BlockTrainer, optimizer_of
from ....client.data import load_examples
from ....settings import DataSource, NoiseSettings
from ...memory import storage_bytes, training_memory
from ...pretrained_models import built_in_conversion

BLOCKS, CLASSES, TOKENS, TRAIN, TEST = 3, 12, 40, 1200, 2000
# 6 epochs; an earlier block learns at a tenth of the next one's rate (discriminative fine-tuning).
SCHEDULE = Schedule(steps=225, batch_size=32, learning_rate=2e-4, rate_decay=0.1)
END_TO_END_RATE, PROBE_RATE = 1e-4, 5e-3
_NOISE = NoiseSettings(P_mean=1.0)


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`minilm_blocks`, `minilm_end_to_end`: accuracy in percent; `memory_ratio`: of a block's step to the other's."""
    train, test = (_examples(side) for side in ("public", "private"))
    rows: list[dict[str, float]] = []
    memory: dict[str, int] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        some = train[torch.randperm(len(train), generator=generator)[:TRAIN].numpy()]
        judged = test[torch.randperm(len(test), generator=generator)[:TEST].numpy()]
        found: dict[str, float] = {}
        for name, method in _METHODS.items():
            accuracy, total = method(some, judged, seed)
            found[name], memory[name] = 100 * accuracy, total
            on_progress(f"seed {seed} {name}: {found[name]:.2f}, {total / 1e6:.0f} MB")
        rows.append(found)
    mean = {name: round(statistics.mean(row[name] for row in rows), 2) for name in rows[0]}
    return {
        **{f"minilm_{name}": value for name, value in mean.items()},
        "minilm_behind_end_to_end_points": round(mean["end_to_end"] - mean["blocks"], 2),
        "memory_ratio": round(memory["blocks"] / memory["end_to_end"], 3),
        "minilm_std": {name: round(statistics.pstdev([row[name] for row in rows]), 2) for name in mean},
        "memory_mb": {name: round(total / 1e6, 1) for name, total in memory.items()},
    }


def _examples(side: str) -> Examples:
    source = DataSource(source=f"documentation-{side}")
    return load_examples("source", source, _settings(), match_contrast=False)


def _settings(objective: str = "task") -> PretrainedTextClassifierSettings:
    fields = {
        "pretrained": str(built_in_conversion("minilm", BLOCKS)), "classes": CLASSES, "sequence_length": TOKENS,
        "trains": "block", "objective": objective,
    }  # fmt: skip
    return PretrainedTextClassifierSettings.model_validate(fields)


def _model(seed: int, objective: str = "task") -> PretrainedTextClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(_settings(objective), _NOISE)
    assert isinstance(model, PretrainedTextClassifier)
    return model


def blocks(
    train: Examples, test: Examples, seed: int, first: int = 0, schedule: Schedule = SCHEDULE
) -> tuple[float, int]:
    """Every block alone, one after another, each on what those before it have become."""
    model, generator = _model(seed), torch.Generator().manual_seed(seed)
    total = 0
    for b in range(first, BLOCKS):
        model.requires_grad_(False)
        trainer = BlockTrainer(model, b, schedule)
        active = model.freeze_all_but(b).train()
        features = _features(model, b, train.inputs)
        objective = BlockObjective()
        for step in range(schedule.steps):
            rows = torch.randint(len(train), (schedule.batch_size,), generator=generator)
            take = partial(
                trainer.step, train.inputs[rows], train.targets[rows], objective, generator, features[rows]
            )
            if step == 1:  # the second one has the optimiser's state
                parts = training_memory(active.parameters(), trainer.optimizer, take)
                rest = storage_bytes(p for p in model.parameters()) - parts["parameters"]
                total = max(total, parts["total"] + rest)
            else:
                take()
        trainer.finish()
    model.eval()
    return _accuracy(lambda inputs: _answer(model, inputs), test), total


def end_to_end(train: Examples, test: Examples, seed: int) -> tuple[float, int]:
    """All of the encoder and a head, as fine-tuning usually is."""
    model = _model(seed).requires_grad_(True)
    for b in range(BLOCKS - 1):
        model.block(b).interface.requires_grad_(False)  # heads that are not used
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer, rate = optimizer_of(wanted, replace(SCHEDULE, learning_rate=END_TO_END_RATE))
    generator = torch.Generator().manual_seed(seed)
    memory: dict[str, int] = {}

    def take(rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = _answer(model, train.inputs[rows])
        F.cross_entropy(logits, train.targets[rows]).backward()
        nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()

    for step in range(SCHEDULE.steps):
        rows = torch.randint(len(train), (SCHEDULE.batch_size,), generator=generator)
        if step == 1:
            memory = training_memory(model.parameters(), optimizer, partial(take, rows))
        else:
            take(rows)
        rate.step()
    return _accuracy(lambda inputs: _answer(model, inputs), test), memory["total"]


def linear_probe(train: Examples, test: Examples, seed: int) -> tuple[float, int]:
    """A head on the frozen encoder's pooled tokens, trained on all texts at once until it is done."""
    model = _model(seed).eval()
    pooled = []
    for examples in (train, test):
        parts = []
        for inputs in examples.inputs.split(100):
            with torch.no_grad():
                parts.append(_pooled(model, inputs))
        pooled.append(torch.cat(parts))
    mean, scale = pooled[0].mean(dim=0), pooled[0].std(dim=0).clamp_min(1e-6)
    head = nn.Linear(pooled[0].shape[1], CLASSES)
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), PROBE_RATE, weight_decay=1.0)
    for _ in range(300):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(head((pooled[0] - mean) / scale), train.targets).backward()
        optimizer.step()
    with torch.no_grad():
        right = head((pooled[1] - mean) / scale).argmax(dim=1) == test.targets
    return float(right.float().mean()), 0


_METHODS: dict[str, Callable[[Examples, Examples, int], tuple[float, int]]] = {
    "end_to_end": end_to_end,
    "blocks": blocks,
    "blocks_at_one_rate": partial(blocks, schedule=replace(SCHEDULE, rate_decay=1.0)),
    "last_block": partial(blocks, first=BLOCKS - 1),
    "linear_probe": linear_probe,
}


def _features(model: PretrainedTextClassifier, block: int, inputs: Tensor) -> Tensor:
    """What the blocks before this one make of the texts, (N, T, D + 1)."""
    return torch.cat([model.context(block, part) for part in inputs.split(100)])


def _parted(model: PretrainedTextClassifier, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer's output (n, T, D), through all blocks, and where there are tokens (n, T)."""
    context = model.embed(0, inputs)
    x, present = context[:, :, :-1], context[:, :, -1] > 0.5
    for b in range(BLOCKS):
        x = model.clean_stream(b, x, present)
    return x, present


def _answer(model: PretrainedTextClassifier, inputs: Tensor) -> Tensor:
    x, present = _parted(model, inputs)
    return model.read(BLOCKS - 1, x, present)


def _pooled(model: PretrainedTextClassifier, inputs: Tensor) -> Tensor:
    x, present = _parted(model, inputs)
    weights = present[:, :, None].float()
    return (x * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def _accuracy(answer: Callable[[Tensor], Tensor], test: Examples) -> float:
    found = [
        (answer(inputs).argmax(dim=1) == targets).float()
        for inputs, targets in zip(test.inputs.split(100), test.targets.split(100), strict=True)
    ]
    return float(torch.cat(found).mean())
