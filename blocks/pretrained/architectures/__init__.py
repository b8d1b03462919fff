"""The architectures, a file each or a file for a family of them; looked up by the `model_type` of transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .common import Trunk

# `model_type` of a config.json: the file and the class in it.
_WHERE = {
    "bert": ("bert", "BertTrunk"),
    "deit": ("vit", "DeiTTrunk"),
    "dinov2": ("vit", "Dinov2Trunk"),
    "distilbert": ("bert", "DistilBertTrunk"),
    "gemma": ("llama", "GemmaTrunk"),
    "gemma3_text": ("llama", "Gemma3Trunk"),
    "gpt2": ("gpt2", "GPT2Trunk"),
    "llama": ("llama", "LlamaTrunk"),
    "mistral": ("llama", "MistralTrunk"),
    "modernbert": ("modernbert", "ModernBertTrunk"),
    "qwen2": ("llama", "Qwen2Trunk"),
    "qwen3": ("llama", "Qwen3Trunk"),
    "vit": ("vit", "ViTTrunk"),
}


def architecture_names() -> tuple[str, ...]:
    """The `model_type`s that can be converted, without importing any of them."""
    return tuple(sorted(_WHERE))


def architecture(model_type: str) -> type[Trunk]:
    """The trunk of this architecture. Raises: LookupError where there is none."""
    if model_type not in _WHERE:
        raise LookupError(f"no architecture {model_type!r}")
    file, name = _WHERE[model_type]
    found: type[Trunk] = getattr(import_module(f".{file}", __name__), name)
    return found
