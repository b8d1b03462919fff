"""Small pretrained models with random weights, for the checks that every family is put to; made once a process."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

_TOKENS, _WIDTH, _IMAGE = 24, 12, 6
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def small_model(kind: Literal["encoder", "vision", "decoder"], layers: int, blocks: int) -> Path:
    """The converted folder of a model of this kind, of widths that no vector length divides.

    Raises: InputError where transformers is not installed.
    """
    from .convert import convert

    _folders.append(tempfile.TemporaryDirectory(prefix="fedblocks-small-"))
    folder = Path(_folders[-1].name)
    _save(kind, layers, folder / "checkpoint")
    convert(folder / "checkpoint", blocks, folder / "converted")
    return folder / "converted"


def _save(kind: str, layers: int, to: Path) -> None:
    import torch
    import transformers

    sizes: dict[str, Any] = {
        "num_hidden_layers": layers, "hidden_size": _WIDTH, "num_attention_heads": 2,
        "intermediate_size": 18, "initializer_range": 0.2,
    }  # fmt: skip
    texts: dict[str, Any] = {"vocab_size": _TOKENS, "max_position_embeddings": 16, "pad_token_id": 0}
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
