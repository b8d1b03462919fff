"""Time and memory of one private step against the plain AdamW step, and against Opacus in the same run.

All train the same four adaLN layers (Peebles & Xie 2023) with cross-entropy. A private step clips every
example's gradient and takes the same optimiser's step; `ghost` and `hooks` are Opacus' two ways of clipping.
`noised` also adds noise from the cryptographic generator, on its grid: its cost goes with the number of
parameters, not with the batch. Steps are taken in turns and medians compared.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.optim import AdamW

from ...privacy.clipping import PerExampleClipping, examples_within
from ...privacy.mechanisms.gaussian import add_gaussian_noise
from ...privacy.randomness import Randomness
from ..memory import allocator_peak
from .interleaved_timing import median_seconds

SHAPES = ((128, 17, 128), (128, 65, 128), (384, 17, 128))  # width, tokens, batch
LAYERS, HEADS, CLASSES = 4, 4, 10
CLIP = 1.0
MEMORY = 192 << 20  # bytes that a private pass may keep

Step = Callable[[], object]


class AdaLNLayer(nn.Module):
    """A pre-norm transformer layer modulated by a condition: (N, T, D), (N, D) -> (N, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        n, t, d = x.shape
        h = F.layer_norm(x, (d,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).view(n, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        x = x + gate1 * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        h = F.layer_norm(x, (d,)) * (1 + scale2) + shift2
        out: Tensor = x + gate2 * self.down(F.gelu(self.up(h)))
        return out


class AdaLNBlock(nn.Module):
    """Four layers and a readout: (N, T, D), (N, D) -> logits (N, classes)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AdaLNLayer(width) for _ in range(LAYERS))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, condition)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


class Case:
    """One shape: the same weights and batch for every way of stepping."""

    def __init__(self, width: int, tokens: int, batch: int) -> None:
        torch.manual_seed(0)
        self.width, self.batch = width, batch
        self.x, self.condition = torch.randn(batch, tokens, width), torch.randn(batch, width)
        self.labels = torch.randint(CLASSES, (batch,))

    def block(self) -> AdaLNBlock:
        torch.manual_seed(1)
        return AdaLNBlock(self.width)

    def losses(self, block: nn.Module, part: Tensor | slice) -> Tensor:
        logits = block(self.x[part], self.condition[part])
        return F.cross_entropy(logits, self.labels[part], reduction="none")

    def plain(self) -> Step:
        block = self.block()
        optimizer = AdamW(block.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            self.losses(block, slice(None)).mean().backward()
            optimizer.step()

        return step

    def ours(self, noise_multiplier: float = 0.0) -> Step:
        block = self.block()
        optimizer = AdamW(block.parameters(), fused=True)
        fit = examples_within(MEMORY, block, lambda places: self.losses(block, places))
        at_once = (
            1 << min(fit, self.batch).bit_length() - 1
        )  # the batch is of one size here, and nothing filled up
        clipping = PerExampleClipping(block, max_grad_norm=CLIP, examples_at_once=at_once)
        randomness = Randomness.from_entropy()
        sizes = [p.numel() for p in clipping.parameters]
        for p in clipping.parameters:
            p.grad = torch.zeros_like(p)

        def step() -> None:
            clipped = clipping.sum(lambda places: self.losses(block, places), examples=self.batch)
            noisy = add_gaussian_noise(clipped, noise_multiplier, randomness)
            for p, g in zip(clipping.parameters, noisy.split(sizes), strict=True):
                torch.mul(g.view_as(p), 1 / self.batch, out=p.grad)
            optimizer.step()

        return step

    def hooks(self) -> Step:
        block = GradSampleModule(self.block())
        optimizer = DPOptimizer(
            AdamW(block.parameters(), fused=True), noise_multiplier=0.0, max_grad_norm=CLIP,
            expected_batch_size=self.batch,
        )  # fmt: skip

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            self.losses(block, slice(None)).mean().backward()
            optimizer.step()

        return step

    def ghost(self) -> Step:
        block = GradSampleModuleFastGradientClipping(
            self.block(), max_grad_norm=CLIP, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(
            AdamW(block.parameters(), fused=True), noise_multiplier=0.0, max_grad_norm=CLIP,
            expected_batch_size=self.batch,
        )  # fmt: skip
        criterion = DPLossFastGradientClipping(block, optimizer, nn.CrossEntropyLoss())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            criterion(block(self.x, self.condition), self.labels).backward()
            optimizer.step()

        return step


def measure(repeats: int = 15, peers: bool = True) -> dict[str, Any]:
    """Under `shapes`, keyed width/tokens/batch: `ratio_to_plain`, `peak_ratio_to_plain` and the peers' ratios."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus")
    found = {}
    for shape in SHAPES:
        case = Case(*shape)
        makers: dict[str, Callable[[], Step]] = {
            "plain": case.plain,
            "ours": case.ours,
            "noised": partial(case.ours, 1.0),
        }
        if peers:
            makers |= {"ghost": case.ghost, "hooks": case.hooks}
        steps = {name: make() for name, make in makers.items()}
        median = median_seconds(steps, repeats)
        peak = {}
        for name, step in steps.items():
            gc.collect()
            peak[name] = allocator_peak(step)
        row = {"plain_ms": round(1000 * median["plain"], 1), "plain_peak_mb": round(peak["plain"] / 1e6, 1)}
        for name in list(steps)[1:]:
            key = "" if name == "ours" else f"{name}_"
            row[f"{key}ratio_to_plain"] = round(median[name] / median["plain"], 3)
            row[f"{key}peak_ratio_to_plain"] = round(peak[name] / peak["plain"], 3)
        found["/".join(map(str, shape))] = row
    return {"shapes": found, "repeats": repeats, "layers": LAYERS}
