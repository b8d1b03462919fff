"""Small pretrained models with random weights, for the checks that every family is put to; made once a process."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

_TOKENS, _IMAGE = 24, 6
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def small_model(kind: Literal["encoder", "vision", "decoder"], layers: int, blocks: int) -> Path:
    """The converted folder of a model of this kind, of widths that no vector length divides.

    Raises: InputError where transformers is not installed.
    """
    return random_model(kind, layers=layers, blocks=blocks)


@cache
def random_model(
    kind: Literal["encoder", "vision", "decoder"],
    *,
    layers: int,
    blocks: int,
    hidden_size: int = 12,
    heads: int = 2,
    intermediate_size: int = 18,
    positions: int = 16,
) -> Path:
    """As `small_model`, of any sizes."""
    from .convert import convert

    _folders.append(tempfile.TemporaryDirectory(prefix="fedblocks-small-"))
    folder = Path(_folders[-1].name)
    sizes = {
        "num_hidden_layers": layers, "hidden_size": hidden_size, "num_attention_heads": heads,
        "intermediate_size": intermediate_size, "initializer_range": 0.2,
    }  # fmt: skip
    _save(kind, sizes, positions, folder / "checkpoint")
    convert(folder / "checkpoint", blocks, folder / "converted")
    return folder / "converted"


def _save(kind: str, sizes: dict[str, Any], positions: int, to: Path) -> None:
    import torch
    import transformers

    texts: dict[str, Any] = {"vocab_size": _TOKENS, "max_position_embeddings": positions, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if kind == "encoder":
            model = transformers.BertModel(transformers.BertConfig(**sizes, **texts))
        elif kind == "vision":
            images: dict[str, Any] = {"image_size": _IMAGE, "patch_size": 3, "num_channels": 1}
            model = transformers.ViTModel(transformers.ViTConfig(**sizes, **images))
        else:
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**sizes, **texts, num_key_value_heads=1, tie_word_embeddings=False)
            )
    model.save_pretrained(to)
    if kind != "vision":
        tokenizer: dict[str, Any] = {
            "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None, "decoder": None, "truncation": None, "padding": None,
            "model": {
                "type": "WordLevel", "vocab": {f"w{i}": i for i in range(_TOKENS)}, "unk_token": "w1",
            },
        }  # fmt: skip
        (to / "tokenizer.json").write_text(json.dumps(tokenizer))
