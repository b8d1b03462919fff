"""Time and memory of one private step on low-rank adapters, against the plain step and against Opacus.

The last of three blocks of MiniLM with its head, 64 texts of 40 tokens, on one thread. A private step clips every
text's gradient, adds noise from the cryptographic generator and takes the plain step's optimiser's step; Opacus forms
a gradient for each text by hooks (`hooks`), which is its only way that needs no second backward pass. Steps are taken
in turns and medians compared. What the blocks before it make of the texts is computed once.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from ....blocks import Denoiser, build_model
from ....blocks.families.pretrained_text_classifier import PretrainedTextClassifierSettings
from ....privacy.clipping import PerExampleClipping, examples_within
from ....privacy.mechanisms.gaussian import add_gaussian_noise
from ....privacy.randomness import Randomness
from ....settings import NoiseSettings
from ...memory import allocator_peak
from ...pretrained_models import built_in_conversion
from ..interleaved_timing import median_seconds

BATCH, TOKENS, CLASSES, BLOCKS, RANK = 64, 40, 12, 3, 8
_CLIP, _NOISE, _RATE = 1.0, 1.0, 1e-3
_MEMORY = 192 << 20  # bytes that a private pass may keep
_REPEATS = 5  # a seed

Step = Callable[[], object]


class _Reader(nn.Module):
    """A block as a module of its own, as Opacus wants it: (N, T, D + 1) -> logits (N, classes)."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.block = model.blocks[-1]
        self._model = [model]  # no submodule

    def forward(self, context: Tensor) -> Tensor:
        (model,) = self._model
        nothing = context.new_zeros(len(context), 1)
        return model.predict(BLOCKS - 1, nothing, context.new_ones(len(context)), context)


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`lora_step_ratio`, `lora_peak_ratio`: of the private step to the plain one; `opacus_...`: of Opacus to it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(seeds * _REPEATS, on_progress)
    finally:
        torch.set_num_threads(threads)


def _measured(repeats: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    makers = {"plain": _plain, "ours": _ours, "opacus": _opacus}
    steps = {name: make() for name, make in makers.items()}
    median = median_seconds(steps, repeats)
    peak = {}
    for name, step in steps.items():
        gc.collect()
        peak[name] = allocator_peak(step)
    on_progress(
        ", ".join(f"{name} {1000 * median[name]:.0f} ms, {peak[name] / 1e6:.0f} MB" for name in steps)
    )
    return {
        "lora_step_ratio": round(median["ours"] / median["plain"], 3),
        "lora_peak_ratio": round(peak["ours"] / peak["plain"], 3),
        "opacus_step_ratio": round(median["opacus"] / median["plain"], 3),
        "opacus_peak_ratio": round(peak["opacus"] / peak["plain"], 3),
        "lora_plain_ms": round(1000 * median["plain"], 1),
        "lora_plain_peak_mb": round(peak["plain"] / 1e6, 1),
    }


def _made() -> tuple[Denoiser, Tensor, Tensor]:
    """The model with its last block to be trained, what that block reads, and labels."""
    settings = PretrainedTextClassifierSettings.model_validate(
        {
            "pretrained": str(built_in_conversion("minilm", BLOCKS)), "classes": CLASSES,
            "sequence_length": TOKENS, "trains": "lora", "lora_rank": RANK,
        }
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(settings, NoiseSettings())
        inputs = torch.randint(1000, settings.vocabulary, (BATCH, TOKENS))
        labels = torch.randint(CLASSES, (BATCH,))
    model.freeze_all_but(BLOCKS - 1).train()
    return model, model.context(BLOCKS - 1, inputs), labels


def _optimizer(module: nn.Module) -> AdamW:
    return AdamW([p for p in module.parameters() if p.requires_grad], _RATE, fused=True)


def _plain() -> Step:
    model, context, labels = _made()
    reader = _Reader(model)
    optimizer = _optimizer(reader)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(reader(context), labels).backward()
        optimizer.step()

    return step


def _ours() -> Step:
    model, context, labels = _made()
    reader = _Reader(model)
    optimizer = _optimizer(reader)

    def losses(places: Tensor) -> Tensor:
        return F.cross_entropy(reader(context[places]), labels[places], reduction="none")

    fit = examples_within(_MEMORY, reader.block, losses)
    at_once = 1 << min(fit, BATCH).bit_length() - 1  # the batch is of one size, and nothing is filled up
    clipping = PerExampleClipping(reader.block, max_grad_norm=_CLIP, examples_at_once=at_once)
    randomness = Randomness.from_entropy()
    sizes = [p.numel() for p in clipping.parameters]
    for p in clipping.parameters:
        p.grad = torch.zeros_like(p)

    def step() -> None:
        clipped = clipping.sum(losses, examples=BATCH)
        noisy = add_gaussian_noise(clipped, _NOISE, randomness)
        for p, g in zip(clipping.parameters, noisy.split(sizes), strict=True):
            torch.mul(g.view_as(p), 1 / BATCH, out=p.grad)
        optimizer.step()

    return step


def _opacus() -> Step:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    warnings.filterwarnings("ignore", module="opacus")
    model, context, labels = _made()
    reader = GradSampleModule(_Reader(model), strict=False)
    optimizer = DPOptimizer(
        _optimizer(reader), noise_multiplier=_NOISE, max_grad_norm=_CLIP, expected_batch_size=BATCH
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(reader(context), labels).backward()
        optimizer.step()

    return step
