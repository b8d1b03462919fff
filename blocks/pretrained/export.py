"""Back to a checkpoint of transformers, which loads without fedblocks: the class, names and precision it had."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...atomic_file import creating_folder
from ...errors import InputError
from .card import REST, TRUNK, ConvertedCard, block_file, check_file
from .checkpoint import COMPANIONS
from .convert import same_mode
from .lora import effective
from .skeleton import TORCH_DTYPES, Skeleton, quiet
from .trunk import Trunk, tensors_of


@dataclass(frozen=True)
class ClassHead:
    """A head as a class of transformers has it: the tensors beside its bare model's, by their names in it, and the
    names of the classes in order."""

    model_class: str
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]


def export(
    trunk: Trunk,
    blocks: Sequence[nn.ModuleList],
    card: ConvertedCard,
    folder: Path,
    to: Path,
    files: Mapping[str, bytes],
    head: ClassHead | None = None,
) -> None:
    """Write the model to the new folder `to`: its tensors, configuration and tokenizer, and these `files`.

    With a `head` the model is written as its class; else as that of the checkpoint. `blocks` are lists of layers, as
    `build` gives them; one that is empty is taken from the converted `folder`, as are the tensors that neither trunk
    nor blocks have. Low-rank adapters are added to the weights beside them. What was trained in float32 is rounded to
    the precision of the checkpoint.
    Raises: InputError where `to` exists or cannot be written.
    """
    if os.path.lexists(to):
        raise InputError("to", str(to), "already exists; name a new folder")
    check_file(folder, card, "config.json")
    config = _configuration(json.loads((folder / "config.json").read_bytes()), card, head)
    model_class = card.model_class if head is None else head.model_class
    skeleton = Skeleton(config, card.architecture, model_class, card.dtype)
    parts = {TRUNK: effective(trunk)}
    for block, layers in enumerate(blocks):
        name = block_file(block)
        parts[name] = effective(layers) if len(layers) else tensors_of(check_file(folder, card, name))
    if head is not None:
        parts[REST] = dict(head.tensors)
    elif REST in card.files:
        parts[REST] = tensors_of(check_file(folder, card, REST))
    _fill(skeleton, parts, card)
    try:
        with creating_folder(to) as draft:
            with quiet():
                skeleton.model.save_pretrained(draft)
            for name in ("generation_config.json", "config.json"):
                (draft / name).unlink(missing_ok=True)
            for name in ("config.json", *COMPANIONS):
                if name in card.files:
                    shutil.copyfile(check_file(folder, card, name), draft / name)
            if config != json.loads((draft / "config.json").read_bytes()):
                (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            for name, content in files.items():
                (draft / name).write_bytes(content)
            same_mode(draft)
    except OSError as error:
        raise InputError("to", str(to), f"cannot be written: {error.strerror or error}") from error


def _fill(skeleton: Skeleton, parts: dict[str, dict[str, Tensor]], card: ConvertedCard) -> None:
    """Give the skeleton its tensors."""
    state = {}
    for name, wanted in skeleton.names.items():
        place = skeleton.place(name, card.per_block)
        tensor = parts.get(place.file, {}).get(place.name)
        if tensor is None:
            raise InputError("model", place.name, "has no such tensor, which the exported class needs")
        tensor = (tensor.T if place.transposed else tensor).detach().to("cpu", TORCH_DTYPES[card.dtype])
        if tensor.shape != wanted.shape:
            raise InputError(
                "model", place.name, f"has the shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}"
            )
        state[name] = tensor.contiguous()
    skeleton.model.load_state_dict(state, strict=False, assign=True)
    skeleton.model.tie_weights()


def _configuration(raw: dict[str, Any], card: ConvertedCard, head: ClassHead | None) -> dict[str, Any]:
    """The checkpoint's own, but for the precision where it named none, and the class where it is another."""
    if not (raw.get("dtype") or raw.get("torch_dtype")):
        raw = raw | {"dtype": card.dtype}
    if head is None:
        return raw
    names = {str(i): name for i, name in enumerate(head.labels)}
    told = {
        "architectures": [head.model_class],
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
    }
    return {key: value for key, value in raw.items() if key not in ("num_labels", "problem_type")} | told
