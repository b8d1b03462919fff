"""Whether a checkpoint can be converted, asked before anything is written: sizes, tokenizer, values."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open

from ...errors import InputError
from ..settings import MOST_BLOCKS
from .checkpoint import Checkpoint
from .skeleton import Skeleton

_CHUNK = 1 << 22  # values looked at together


def check_blocks(blocks: int, layers: int) -> None:
    """Raises InputError unless so many blocks have equally many of the layers."""
    fitting = [each for each in range(1, min(layers, MOST_BLOCKS) + 1) if layers % each == 0]
    if blocks not in fitting:
        rule = f"must divide the model's {layers} layers: one of {', '.join(map(str, fitting))}"
        raise InputError("blocks", blocks, rule)


def check_head(skeleton: Skeleton) -> None:
    """Raises InputError for a decoder that cannot predict the next token."""
    if skeleton.trunk_class.kind != "decoder" or hasattr(skeleton.model, "lm_head"):
        return
    if not getattr(skeleton.config, "tie_word_embeddings", False):
        rule = "has no head for the next token; give a checkpoint of the class that predicts it"
        raise InputError("config.json: architectures", skeleton.class_name, rule)


def most_values(checkpoint: Checkpoint) -> int:
    """How large a model may be that the checkpoint is of: transformers draws what is missing before it says so."""
    return 2 * checkpoint.values + (1 << 24)


def check_finite(checkpoint: Checkpoint) -> None:
    """Raises InputError for a tensor with a value that is not finite."""
    for path in sorted({each.file for each in checkpoint.tensors.values()}):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dictionary
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                for part in tensor.reshape(-1).split(_CHUNK):
                    if not bool(torch.isfinite(part).all()):
                        raise InputError(name, path.name, "has values that are not finite")


def pad_token(checkpoint: Checkpoint, skeleton: Skeleton) -> int | None:
    """The token that fills short texts; none where the model has none, or sees images.

    Raises: InputError where the tokenizer is missing or does not fit the model.
    """
    if skeleton.trunk_class.kind == "vision":
        return None
    path = checkpoint.path_of("tokenizer.json")
    if path is None:
        raise InputError(
            "MODEL_DIR", str(checkpoint.folder), "has no tokenizer.json, which texts are read by"
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise InputError("tokenizer.json", str(path), f"cannot be read: {error}") from error
    size = skeleton.config.vocab_size
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0:
        raise InputError("tokenizer.json", str(path), "has no tokens")
    if largest >= size:
        rule = f"has token {largest}, the model embeds {size}: it belongs to another model"
        raise InputError("tokenizer.json", str(path), rule)
    pad = skeleton.config.pad_token_id
    if pad is None and checkpoint.path_of("tokenizer_config.json"):
        named = checkpoint.json_of("tokenizer_config.json").get("pad_token")
        named = named.get("content") if isinstance(named, dict) else named
        pad = tokenizer.token_to_id(named) if isinstance(named, str) else None
    if pad is not None and not 0 <= pad < size:
        raise InputError("config.json: pad_token_id", pad, f"must be one of {size} tokens")
    return int(pad) if pad is not None else None


def normalisation(checkpoint: Checkpoint, skeleton: Skeleton) -> dict[str, tuple[float, ...]]:
    """Mean and deviation that images are normalised by; none where the checkpoint has no such file, or says so."""
    if skeleton.trunk_class.kind != "vision" or not checkpoint.path_of("preprocessor_config.json"):
        return {}
    raw = checkpoint.json_of("preprocessor_config.json")
    if not raw.get("do_normalize", True):
        return {}
    channels = skeleton.config.num_channels
    return {"mean": _numbers(raw, "image_mean", channels), "std": _numbers(raw, "image_std", channels)}


def _numbers(raw: dict[str, Any], field: str, channels: int) -> tuple[float, ...]:
    values = raw.get(field)
    numbers = [each for each in values if isinstance(each, int | float)] if isinstance(values, list) else []
    if not len(numbers) == len(values or ()) == channels:
        raise InputError(f"preprocessor_config.json: {field}", values, f"must be {channels} numbers")
    if field == "image_std" and not all(each > 0 for each in numbers):
        raise InputError(f"preprocessor_config.json: {field}", values, "must be positive")
    return tuple(float(each) for each in numbers)
