"""Next-token loss of a decoder after adaptation block by block, against full fine-tuning at equal steps.

The small Llama, trained on the docstrings of scientific packages, is adapted to the standard library's. Each block
takes as many steps as fine-tuning end to end, with the same batches and rates. "mixed" is the ordinary loss with
gradients in its own layers alone, and denoising; "denoise" shows what the pure objective does. "full" trains all
layers end to end, and leaves embeddings and head as they are, as blocks do: these are pinned, and the common table of
targets. "full_embeddings" trains them too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....blocks import BlockObjective, Schedule, build_model, train
from ....blocks.families.pretrained_decoder import PretrainedDecoder, PretrainedDecoderSettings
from ....blocks.training import optimizer_of
from ....client.data import load_examples
from ....settings import DataSource, NoiseSettings
from ...pretrained_models import built_in_conversion, built_in_model

BLOCKS, LENGTH, TEST = 3, 64, 300
SCHEDULE = Schedule(steps=100, batch_size=32, learning_rate=3e-3, schedule="sequential")
_NOISE = NoiseSettings(P_mean=1.0)


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`decoder_excess_loss`: nats a token that "mixed" ends above "full"; below it, a negative figure."""
    rows = [_of_seed(seed, on_progress) for seed in range(seeds)]
    mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    return {
        "decoder_excess_loss": round(mean["mixed"] - mean["full"], 4),
        "decoder_excess_loss_over_embeddings_too": round(mean["mixed"] - mean["full_embeddings"], 4),
        "decoder_loss": {name: round(value, 4) for name, value in mean.items()},
        "decoder_loss_std": {
            name: round(statistics.pstdev([row[name] for row in rows]), 4) for name in mean
        },
    }  # fmt: skip


def _of_seed(seed: int, on_progress: Callable[[str], None]) -> dict[str, float]:
    tokens, test = _texts(seed)
    original = _model("task")
    found = {
        "original": _loss(original, test),
        "full": _full(tokens, test, seed, embeddings=False),
        "full_embeddings": _full(tokens, test, seed, embeddings=True),
    }
    for objective in ("mixed", "denoise"):
        model = _model(objective)
        train(
            model, tokens, tokens, objective=BlockObjective(), schedule=SCHEDULE,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        found[objective] = _loss(model, test)
    on_progress(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


def _model(objective: str) -> PretrainedDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(_settings(objective), _NOISE)
    assert isinstance(model, PretrainedDecoder)
    return model


def _settings(objective: str) -> PretrainedDecoderSettings:
    folder = str(built_in_conversion("small-llama", BLOCKS))
    fields = {"pretrained": folder, "sequence_length": LENGTH, "trains": "block", "objective": objective}
    return PretrainedDecoderSettings.model_validate(fields)


def _texts(seed: int) -> tuple[Tensor, Tensor]:
    """Windows of tokens, (train, test): another stretch of the text for each seed is held out."""
    source = DataSource(source="python-docstrings")
    every = load_examples("source", source, _settings("task"), match_contrast=False).inputs
    start = seed * TEST
    rest = torch.cat([every[:start], every[start + TEST :]])
    return rest, every[start : start + TEST]


@torch.no_grad()
def _loss(model: PretrainedDecoder, test: Tensor) -> float:
    """Nats a token of what the last block predicts by itself: the whole model's ordinary answer."""
    last = BLOCKS - 1
    found = []
    for part in test.split(50):
        context = model.features_before(last, part)
        x, present = context[:, :, :-1], context[:, :, -1] > 0.5
        prediction = model.read(last, model.clean_stream(last, x, present), present)
        found.append(model.loss(prediction, part))
    return float(torch.cat(found).mean())


def _full(tokens: Tensor, test: Tensor, seed: int, *, embeddings: bool) -> float:
    """All layers end to end by AdamW, with embeddings, last norm and head or without."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(built_in_model("small-llama"), local_files_only=True)
    model.requires_grad_(embeddings).model.layers.requires_grad_(True)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer, rate = optimizer_of(wanted, SCHEDULE)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(SCHEDULE.steps):
        rows = tokens[torch.randint(len(tokens), (SCHEDULE.batch_size,), generator=generator)]
        optimizer.zero_grad(set_to_none=True)
        _next_token(model, rows).mean().backward()
        nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        rate.step()
    model.eval()
    with torch.no_grad():
        return float(torch.cat([_next_token(model, part) for part in test.split(50)]).mean())


def _next_token(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens).logits[:, :-1].float()
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).mean(dim=1)
