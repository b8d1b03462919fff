"""A decoder of 1.2 billion parameters: converted, and one of its blocks trained privately, on a small machine.

Each stage is a process of its own, whose largest resident memory is what the system says of it. Weights are random
and in bfloat16, shapes those of a small Llama. End to end, Adam in single precision holds weights, gradients and two
moments of every parameter: those bytes are counted, since they do not fit here.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LLAMA: dict[str, int] = {
    "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632, "vocab_size": 32_000, "max_position_embeddings": 2048,
}  # fmt: skip
BLOCKS, RANK = 8, 8
_EXAMPLES, _BATCH, _TOKENS, _STEPS = 16, 8, 64, 2
_FLOAT, _HALF = 4, 2


def measure(
    sizes: dict[str, int] = LLAMA,
    blocks: int = BLOCKS,
    block: int | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """`convert_peak_gib`, `lora_peak_gib`, `whole_block_peak_gib`: of converting, and of private steps on a block.

    `end_to_end_gib`: weights, gradients and Adam's moments of the whole model, without any activations.
    `lora_round_share`: bytes of an update of low-rank adapters of all blocks, of the model's bytes.
    `block`: the one that trains; none: the last but one, whose features all but one of the others make.
    """
    started, chosen = time.perf_counter(), max(blocks - 2, 0) if block is None else block
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fedblocks-large-") as name:
        folder = Path(name)
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "make": partial(_make, folder, sizes),
            "convert": partial(_convert, folder, blocks),
            "prefix": partial(_prefix, folder, chosen),
            "lora": partial(_train, folder, chosen, "lora"),
            "whole_block": partial(_train, folder, chosen, "block"),
        }
        for stage, work in stages.items():
            on_progress(stage)
            result |= {f"{stage}_{key}": value for key, value in _apart(work).items()}
    parameters = result.pop("make_parameters")
    return {
        "parameters": parameters,
        "blocks": blocks,
        "block": chosen,
        **result,
        "end_to_end_gib": round(parameters * 4 * _FLOAT / 2**30, 2),
        "lora_round_share": round(_FLOAT * blocks * result["lora_trained"] / (_HALF * parameters), 5),
        "batch_size": _BATCH,
        "tokens": _TOKENS,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work` in a new process, with its largest resident memory and its seconds."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found: dict[str, Any] = pool.apply(_measured, (work,))
    return found


def _measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.perf_counter()
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB
    return found | {"peak_gib": round(peak, 2), "seconds": round(time.perf_counter() - began, 1)}


def _make(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    import torch
    import transformers

    torch.manual_seed(0)
    wanted: dict[str, Any] = {**sizes}
    config = transformers.LlamaConfig(**wanted, tie_word_embeddings=False, dtype=torch.bfloat16)
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1)
    model.save_pretrained(folder / "checkpoint")
    words = {f"w{i}": i for i in range(sizes["vocab_size"])}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}
    (folder / "checkpoint" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {"parameters": sum(p.numel() for p in model.parameters())}


def _convert(folder: Path, blocks: int) -> dict[str, Any]:
    from ...blocks.pretrained.convert import convert

    convert(folder / "checkpoint", blocks, folder / "converted")
    return {}


def _prefix(folder: Path, block: int) -> dict[str, Any]:
    """What the block reads of some examples, one block in memory at a time; kept as a company keeps it."""
    import torch
    from safetensors.torch import save_file

    from ...blocks.streamed_prefix import streamed_context

    settings = _settings(folder, "lora")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(settings.kind.target_classes or 2, (_EXAMPLES, _TOKENS), generator=generator)
    context = streamed_context(settings, tokens, block)
    save_file({"tokens": tokens, "context": context}, folder / "prefix.safetensors")
    return {}


def _train(folder: Path, block: int, trains: str) -> dict[str, Any]:
    """Private steps on one block: clipped per example, noised, and applied."""
    import torch
    from safetensors.torch import load_file
    from torch import Tensor

    from ...blocks import BlockObjective, block_parameters, build_model
    from ...privacy.dp_sgd import DPSGD
    from ...privacy.randomness import Randomness
    from ...privacy.sampling import PoissonSampling
    from ...privacy.source import CryptographicSource
    from ...settings import NoiseSettings

    kept = load_file(folder / "prefix.safetensors")
    model = build_model(_settings(folder, trains), NoiseSettings(), only=block)
    active = model.freeze_all_but(block, interface=False).train()
    randomness, objective = Randomness.from_entropy(), BlockObjective()
    source = CryptographicSource(randomness)

    def losses(indices: Tensor, draws: int) -> Tensor:
        targets = kept["tokens"][indices]
        draw = model.draw(block, targets, source)
        return objective.at(model, block, kept["context"][indices], targets, draw)

    mechanism = DPSGD(
        sampling=PoissonSampling(_BATCH / _EXAMPLES), noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=_BATCH, learning_rate=1e-3, steps=_STEPS, noise_draws=1, examples_at_once=_BATCH,
    )  # fmt: skip
    update = mechanism.train(active, losses, examples=_EXAMPLES, randomness=randomness)
    assert torch.isfinite(update).all()
    return {"trained": sum(p.numel() for _, p in block_parameters(active))}


def _settings(folder: Path, trains: str) -> Any:
    from ...blocks.families import family

    kind = family("pretrained-decoder").settings
    set_ = {"sequence_length": _TOKENS, "trains": trains, "lora_rank": RANK, "objective": "task"}
    return kind.model_validate(set_ | {"pretrained": str(folder / "converted")})
