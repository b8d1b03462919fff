"""Back to a checkpoint of transformers, which loads without fedblocks: the class, names and precision it had."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ...atomic_file import creating_folder
from ...errors import InputError
from .card import REST, TRUNK, ConvertedCard, block_file, check_file
from .checkpoint import COMPANIONS
from .convert import same_mode
from .lora import LoRALinear
from .skeleton import TORCH_DTYPES, Skeleton, quiet
from .trunk import Trunk, tensors_of


def export(
    trunk: Trunk,
    blocks: Sequence[nn.ModuleList],
    card: ConvertedCard,
    folder: Path,
    to: Path,
    model_card_text: str,
) -> None:
    """Write the model to the new folder `to`: its tensors, configuration, tokenizer and README.md.

    `blocks` are lists of layers, as `build` gives them; one that is empty is taken from the converted `folder`, as
    are the tensors that neither trunk nor blocks have. Low-rank adapters are added to the weights beside them. What
    was trained in float32 is rounded to the precision of the checkpoint.
    Raises: InputError where `to` exists or cannot be written.
    """
    if os.path.lexists(to):
        raise InputError("to", str(to), "already exists; name a new folder")
    check_file(folder, card, "config.json")
    skeleton = Skeleton.of_folder(folder, card.architecture, card.model_class, card.dtype)
    parts = {TRUNK: effective(trunk)}
    for block, layers in enumerate(blocks):
        name = block_file(block)
        parts[name] = effective(layers) if len(layers) else tensors_of(check_file(folder, card, name))
    if REST in card.files:
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
            _name_precision(draft / "config.json", card)
            same_mode(draft)
            (draft / "README.md").write_text(model_card_text, "utf-8")
    except OSError as error:
        raise InputError("to", str(to), f"cannot be written: {error.strerror or error}") from error


def effective(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by name, each adapter merged into the linear map that it adds to."""
    adapted = {name: each for name, each in module.named_modules() if isinstance(each, LoRALinear)}
    found = {}
    for name, tensor in module.state_dict().items():
        inside = next((each for each in adapted if name.startswith(f"{each}.")), None)
        if inside is None:
            found[name] = tensor
        elif name == f"{inside}.base.bias":
            found[f"{inside}.bias"] = tensor
    return found | {f"{name}.weight": each.merged() for name, each in adapted.items()}


def _fill(skeleton: Skeleton, parts: dict[str, dict[str, Tensor]], card: ConvertedCard) -> None:
    """Give the skeleton its tensors."""
    state = {}
    for name, wanted in skeleton.names.items():
        place = skeleton.place(name, card.per_block)
        tensor = parts.get(place.file, {}).get(place.name)
        if tensor is None:
            raise InputError("model", place.name, f"has no such tensor, which {card.model_class} needs")
        tensor = (tensor.T if place.transposed else tensor).detach().to("cpu", TORCH_DTYPES[card.dtype])
        if tensor.shape != wanted.shape:
            raise InputError(
                "model", place.name, f"has the shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}"
            )
        state[name] = tensor.contiguous()
    skeleton.model.load_state_dict(state, strict=False, assign=True)
    skeleton.model.tie_weights()


def _name_precision(path: Path, card: ConvertedCard) -> None:
    """The configuration is the checkpoint's own, but for the precision where it named none."""
    raw = json.loads(path.read_bytes())
    if not (raw.get("dtype") or raw.get("torch_dtype")):
        path.write_text(json.dumps(raw | {"dtype": card.dtype}, indent=2) + "\n", "utf-8")
