"""A Hugging Face checkpoint's folder, as strangers hand it over: read without running or fetching anything of it.

Only JSON, safetensors and the texts of a tokenizer are opened, by code of transformers for known architectures.
Pickle files, code, quantised tensors and links that lead elsewhere are refused by name, and sizes are checked before
memory is taken.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...errors import InputError
from .architectures import architecture, architecture_names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What is taken along, where it is there: what turns texts and images into inputs, and how text is drawn.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Fields that would have transformers run code, fetch something or read other files when the export is loaded.
_FORBIDDEN = {
    "auto_map": "the model brings its own code, which is never run",
    "custom_pipelines": "the model brings its own code, which is never run",
    "quantization_config": "quantised tensors cannot be adapted; give the checkpoint before it was quantised",
    "fusion_config": "must not be set",
    "kernel_config": "must not be set",
    "per_layer_config": "layers of different sizes are not supported",
    "transformers_weights": "must not be set",
}
_ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_LARGEST_JSON, _LARGEST_COMPANION = 16 << 20, 128 << 20  # bytes
_LARGEST_NUMBER, _MOST_LAYERS = 1 << 20, 256
_FREE_NUMBERS = ("theta", "base_freq", "_token_id", "label2id", "model_max_length", "total", "params")
_DTYPES = {"F32": "float32", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Tensors:
    """What the header of a safetensors file says of one tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """A folder whose files have been found to be what they should; its tensors' values are not read yet."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError("MODEL_DIR", str(folder), "is not a folder; give one with a checkpoint's files")
        self.folder = folder
        self.raw = self.json_of("config.json")
        self.model_type, self.class_name = self._model()
        check_fields(self.raw, "config.json")
        self.tensors = self._headers()
        self.dtype = self._dtype()
        self.companions = [path for name in COMPANIONS if (path := self._companion(name))]

    def path_of(self, name: str) -> Path | None:
        """A file of the folder; none where there is no such file. Raises: InputError where it leads elsewhere."""
        path = self.folder / name
        if not path.exists() and not path.is_symlink():
            return None
        real, own = path.resolve(), self.folder.resolve()
        # The cache of huggingface_hub has links from snapshots/REVISION into blobs/.
        inside = own in real.parents or real.parent == own.parent.parent / "blobs"
        if not inside or not real.is_file():
            raise InputError(
                name, str(path), "must be a file of the folder, or of the hub's cache that it lies in"
            )
        return path

    def json_of(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder."""
        path = self.path_of(name)
        if path is None:
            raise InputError("MODEL_DIR", str(self.folder), f"has no {name}")
        if path.stat().st_size > _LARGEST_JSON:
            raise InputError(name, str(path), f"is larger than {_LARGEST_JSON >> 20} MiB")
        try:
            found = json.loads(path.read_bytes(), parse_constant=_no_number)
        except (ValueError, RecursionError, OSError) as error:
            raise InputError(name, str(path), f"is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise InputError(name, str(path), "must be a JSON object")
        return found

    def _model(self) -> tuple[str, str]:
        """The architecture and the class of transformers that the tensors belong to."""
        model_type, named = self.raw.get("model_type"), self.raw.get("architectures")
        if model_type not in architecture_names():
            rule = (
                f"this architecture cannot be converted; it must be one of {', '.join(architecture_names())}"
            )
            raise InputError("config.json: model_type", model_type, rule)
        classes = architecture(model_type).classes
        if not (isinstance(named, list) and len(named) == 1 and named[0] in classes):
            raise InputError("config.json: architectures", named, f"must name one of {', '.join(classes)}")
        return model_type, named[0]

    def _headers(self) -> dict[str, Tensors]:
        """Every tensor of the checkpoint, by name."""
        found: dict[str, Tensors] = {}
        files, expected = self._files()
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  # it is no dictionary
                        if name in found:
                            raise InputError(path.name, name, f"is also in {found[name].file.name}")
                        piece = file.get_slice(name)
                        found[name] = Tensors(path, str(piece.get_dtype()), tuple(piece.get_shape()))
            except (SafetensorError, OSError, ValueError) as error:
                raise InputError(path.name, str(path), f"is no whole safetensors file: {error}") from error
        if expected is not None:
            for name in sorted(expected.keys() ^ found.keys())[:1]:
                where = INDEX if name in expected else found[name].file.name
                raise InputError(INDEX, name, f"is in {where} alone")
            for name, file_name in expected.items():
                if found[name].file.name != file_name:
                    raise InputError(INDEX, name, f"is in {found[name].file.name}, not in {file_name}")
        return found

    def _files(self) -> tuple[list[Path], dict[str, str] | None]:
        """The safetensors files, and where there is an index, which of them has each tensor."""
        if path := self.path_of(WEIGHTS):
            return [path], None
        if self.path_of(INDEX) is None:
            pickles = sorted(path.name for pattern in _PICKLES for path in self.folder.glob(pattern))
            rule = f"has no {WEIGHTS}"
            if pickles:
                rule = f"is a pickle, which can run code when it is opened: save the checkpoint as {WEIGHTS}"
            raise InputError("MODEL_DIR", str(self.folder / pickles[0] if pickles else self.folder), rule)
        where = self.json_of(INDEX).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise InputError(INDEX, where, "must have a weight_map")
        files = {}
        for name, file_name in where.items():
            plain = isinstance(file_name, str) and Path(file_name).name == file_name
            if not plain or not file_name.endswith(".safetensors"):
                raise InputError(INDEX, file_name, f"{name}: must name a safetensors file of the folder")
            if file_name not in files:
                path = self.path_of(file_name)
                if path is None:
                    raise InputError(INDEX, file_name, "is not in the folder")
                files[file_name] = path
        return [files[name] for name in sorted(files)], where

    def _dtype(self) -> str:
        """The one precision that the checkpoint's real tensors have."""
        kinds = {
            each.dtype: name
            for name, each in sorted(self.tensors.items())
            if each.dtype[0] in "FB" and each.dtype != "BOOL"
        }
        for kind, name in kinds.items():
            if kind not in _DTYPES:
                raise InputError(
                    name, kind, "tensors must be F32 or BF16; save the checkpoint in one of the two"
                )
        if len(kinds) != 1:
            raise InputError("dtype", ", ".join(sorted(kinds)), "all tensors must have one precision")
        (found,) = (_DTYPES[kind] for kind in kinds)
        named = self.raw.get("dtype") or self.raw.get("torch_dtype") or found
        if named != found:
            raise InputError(
                "config.json: dtype",
                named,
                f"the tensors are {found}; save the checkpoint in the precision it is used in",
            )
        return found

    def _companion(self, name: str) -> Path | None:
        path = self.path_of(name)
        if path is None:
            return None
        if path.stat().st_size > _LARGEST_COMPANION:
            raise InputError(name, str(path), f"is larger than {_LARGEST_COMPANION >> 20} MiB")
        if name.endswith("config.json"):
            check_fields(self.json_of(name), name, numbers=False)
        return path

    @cached_property
    def values(self) -> int:
        """How many values its tensors have."""
        return sum(math.prod(each.shape) for each in self.tensors.values())


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def check_fields(raw: dict[str, Any], file: str, numbers: bool = True) -> None:
    """Refuse a JSON object that would run code, fetch something, or take memory before anything can be compared."""
    for field, rule in _FORBIDDEN.items():
        if raw.get(field):
            raise InputError(f"{file}: {field}", raw[field], rule)
    for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if raw.get(field) not in _ATTENTIONS:
            raise InputError(f"{file}: {field}", raw[field], "is not one of transformers' own")
    if numbers:
        _check_numbers(raw, file)
        for field in ("num_hidden_layers", "n_layer", "n_layers"):
            if isinstance(raw.get(field), int) and not 1 <= raw[field] <= _MOST_LAYERS:
                raise InputError(f"{file}: {field}", raw[field], f"must be from 1 to {_MOST_LAYERS}")


def _check_numbers(value: Any, field: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            if not str(key).endswith(_FREE_NUMBERS):
                _check_numbers(each, f"{field}: {key}")
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each, field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(field, value, "must be finite")
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise InputError(field, value, f"must be at most {_LARGEST_NUMBER}")
