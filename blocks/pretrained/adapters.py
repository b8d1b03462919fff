"""Low-rank adapters in the format of peft: `adapter_config.json` and `adapter_model.safetensors`, in and out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...atomic_file import creating_folder
from ...errors import InputError
from .architectures import architecture
from .card import ConvertedCard
from .lora import LoRALinear
from .skeleton import Skeleton
from .trunk import tensors_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What would compute something else: accepted only where it is not set.
_OFF = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_map", "corda_config", "eva_config",
    "layer_replication", "lora_bias", "modules_to_save", "monteclora_config", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
)  # fmt: skip


class _Config(BaseModel):
    """The fields that say what an adapter computes."""

    model_config = ConfigDict(strict=True)

    peft_type: str = Field(pattern="^LORA$")
    r: int = Field(ge=1, le=4096)
    lora_alpha: float = Field(gt=0, le=1e6)
    bias: str = Field("none", pattern="^none$")


def save_adapter(
    blocks: Sequence[nn.ModuleList],
    card: ConvertedCard,
    folder: Path,
    to: Path,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the adapters of all blocks to the new folder `to`, as peft loads them onto the checkpoint's class.

    Beside them these `files`.

    `blocks` as `build` gives them for the converted `folder`, with `add_lora`'s adapters of one rank.
    Raises: InputError where there are none, their ranks differ, or `to` exists.
    """
    if os.path.lexists(to):
        raise InputError("to", str(to), "already exists; name a new folder")
    adapters = _adapters(blocks, card)
    sizes = {(each.A.out_features, each.scale) for each in adapters.values()}
    if len(sizes) != 1:
        raise InputError("blocks", len(adapters), "must have low-rank adapters of one rank and alpha")
    ((rank, scale),) = sizes
    skeleton = Skeleton.of_folder(folder, card.architecture, card.model_class, card.dtype)
    tensors: dict[str, Tensor] = {}
    for name, each in adapters.items():
        for letter, part in (("A", each.A), ("B", each.B)):
            key = f"base_model.model.{skeleton.prefix}{name}.lora_{letter}.weight"
            tensors[key] = part.weight.detach().cpu().contiguous()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if card.kind == "decoder" else None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # GPT-2 keeps its weights the other way round.
        "fan_in_fan_out": skeleton.has_transposed,
        "target_modules": sorted(adapters),
        "inference_mode": True,
        "init_lora_weights": True,
    }
    with creating_folder(to) as draft:
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        for name, content in (files or {}).items():
            (draft / name).write_bytes(content)


def load_adapter(blocks: Sequence[nn.ModuleList], card: ConvertedCard, adapter: Path) -> list[str]:
    """Put the adapters of a folder that peft wrote beside the linear maps of the blocks; the names of these maps.

    Blocks whose list is empty are left out. Raises: InputError for an adapter that does not fit the model or computes
    something else than W x + (alpha / rank) B A x; the blocks are as before then.
    """
    config = _read_config(adapter)
    found = _pairs(adapter, architecture(card.architecture).layers_at)
    planned: list[tuple[nn.Module, str, nn.Linear, dict[str, Tensor]]] = []
    for name, (layer, inner, pair) in found.items():
        if layer >= card.layers:
            raise InputError(WEIGHTS, name, f"the model has {card.layers} layers")
        layers = blocks[layer // card.per_block]
        if not len(layers):
            continue
        parent, _, own = f"{layer % card.per_block}.{inner}".rpartition(".")
        try:
            owner = layers.get_submodule(parent)
            base = getattr(owner, own)
        except AttributeError as error:
            raise InputError(WEIGHTS, name, "the model has no such map") from error
        if not isinstance(base, nn.Linear):
            raise InputError(WEIGHTS, name, "is no linear map, or has an adapter already")
        wanted = {"A": (config.r, base.in_features), "B": (base.out_features, config.r)}
        for letter, shape in wanted.items():
            if tuple(pair[letter].shape) != shape:
                raise InputError(WEIGHTS, name, f"lora_{letter} must have the shape {shape}")
        planned.append((owner, own, base, pair))
    for owner, own, base, pair in planned:
        adapted = LoRALinear(base, config.r, config.lora_alpha)
        with torch.no_grad():
            adapted.A.weight.copy_(pair["A"])
            adapted.B.weight.copy_(pair["B"])
        setattr(owner, own, adapted)
    return sorted(found)


def _adapters(blocks: Sequence[nn.ModuleList], card: ConvertedCard) -> dict[str, LoRALinear]:
    """All adapters by the name of their linear map in the bare model."""
    at = architecture(card.architecture).layers_at
    found = {}
    for block, layers in enumerate(blocks):
        for name, module in layers.named_modules():
            if isinstance(module, LoRALinear):
                number, _, inner = name.partition(".")
                found[f"{at}.{block * card.per_block + int(number)}.{inner}"] = module
    return found


def _read_config(adapter: Path) -> _Config:
    path = adapter / CONFIG
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("must be a JSON object")
        config = _Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{CONFIG}: {'.'.join(map(str, first['loc']))}", first["input"], first["msg"]
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(CONFIG, str(path), f"cannot be read: {error}") from error
    for field in _OFF:
        if raw.get(field):
            raise InputError(f"{CONFIG}: {field}", raw[field], "must not be set: it computes something else")
    return config


def _pairs(adapter: Path, layers_at: str) -> dict[str, tuple[int, str, dict[str, Tensor]]]:
    """By name in the adapter: the layer's number, the map's name in it, and A and B."""
    path = adapter / WEIGHTS
    try:
        tensors = tensors_of(path)
    except (OSError, SafetensorError) as error:
        raise InputError(WEIGHTS, str(path), f"is no whole safetensors file: {error}") from error
    where = re.compile(rf"(?:[A-Za-z_]+\.)?{re.escape(layers_at)}\.(\d{{1,4}})\.(.+)")
    found: dict[str, tuple[int, str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        place = where.fullmatch(match[1]) if match else None
        if match is None or place is None:
            raise InputError(WEIGHTS, key, f"must be lora_A or lora_B of a map in {layers_at}")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise InputError(WEIGHTS, key, "must have finite values")
        found.setdefault(match[1], (int(place[1]), place[2], {}))[2][match[2]] = tensor
    if not found:
        raise InputError(WEIGHTS, str(path), "has no adapter")
    for name, (_, _, pair) in found.items():
        if len(pair) != 2:
            raise InputError(WEIGHTS, name, "must have both lora_A and lora_B")
    return found
