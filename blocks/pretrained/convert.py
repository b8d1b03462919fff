"""Cut a checkpoint into a trunk and blocks, a file each, so that a company loads what it trains and no more."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ...atomic_file import creating_folder
from ...errors import InputError
from .adapters import CONFIG, WEIGHTS, load_adapter
from .architectures import architecture
from .card import CARD, TRUNK, ConvertedCard, block_file, check_file, read_card, sha256_of
from .checkpoint import Checkpoint
from .checks import check_blocks, check_finite, check_head, most_values, normalisation, pad_token
from .lora import effective
from .skeleton import Place, Skeleton, import_transformers, quiet
from .trunk import tensors_of


def convert(model_dir: Path, blocks: int, to: Path, adapter: Path | None = None) -> ConvertedCard:
    """Write the checkpoint of a folder, cut into so many blocks, to the new folder `to`.

    `adapter`: a folder of peft's, whose low-rank additions are added to the checkpoint's weights. Where `to` already
    holds this very conversion, it is left as it is.
    Raises: InputError for a checkpoint that cannot be used or a `to` that holds something else; nothing is written.
    """
    import_transformers()
    checkpoint = Checkpoint(model_dir)
    skeleton = Skeleton(
        checkpoint.raw,
        checkpoint.model_type,
        checkpoint.class_name,
        checkpoint.dtype,
        most_values=most_values(checkpoint),
    )
    sizes = skeleton.trunk_class.sizes(skeleton.config)
    layers = int(sizes["layers"] or 0)
    check_blocks(blocks, layers)
    check_head(skeleton)
    pad = pad_token(checkpoint, skeleton)
    images = normalisation(checkpoint, skeleton)
    check_finite(checkpoint)
    content: dict[str, Any] = {
        "architecture": checkpoint.model_type,
        "model_class": checkpoint.class_name,
        "kind": skeleton.trunk_class.kind,
        "blocks": blocks,
        "pad": pad,
        "dtype": checkpoint.dtype,
        "source": _digest_of(checkpoint, adapter),
        **sizes,
        **images,
    }
    if os.path.lexists(to):
        return _existing(to, content)
    model = _loaded(checkpoint, skeleton)
    tensors = _cut(model, skeleton, layers // blocks)
    if adapter is not None:
        _add(adapter, tensors, checkpoint, ConvertedCard.model_construct(**content))
    try:
        with creating_folder(to) as draft:
            for file, of_file in tensors.items():
                save_file(of_file, draft / file, metadata={"format": "pt"})
            for path in (model_dir / "config.json", *checkpoint.companions):
                shutil.copyfile(path, draft / path.name)
            same_mode(draft)
            files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
            name = model_dir.resolve().name[:200]
            card = ConvertedCard.model_validate({"name": name, **content, "files": files})
            (draft / CARD).write_text(card.model_dump_json(indent=1) + "\n", "utf-8")
    except OSError as error:
        raise InputError("to", str(to), f"cannot be written: {error.strerror or error}") from error
    return card


def _digest_of(checkpoint: Checkpoint, adapter: Path | None) -> str:
    """SHA-256 over names and content of all files that the conversion is made from."""
    tensors = {each.file for each in checkpoint.tensors.values()}
    paths = {checkpoint.folder / "config.json", *tensors, *checkpoint.companions}
    if adapter is not None:
        paths |= {path for name in (CONFIG, WEIGHTS) if (path := adapter / name).is_file()}
    named = {path.name: sha256_of(path) for path in paths}
    return hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _existing(to: Path, content: dict[str, Any]) -> ConvertedCard:
    """The card of a folder that holds this conversion already."""
    rule = "holds something else already; name a new folder"
    try:
        card = read_card(to)
    except InputError as error:
        raise InputError("to", str(to), rule) from error
    wanted = ConvertedCard.model_construct(name=card.name, **content, files=card.files)
    if wanted.model_dump() != card.model_dump():
        raise InputError("to", str(to), rule)
    for name in card.files:
        check_file(to, card, name)
    return card


def _loaded(checkpoint: Checkpoint, skeleton: Skeleton) -> Any:
    """The model with its tensors, by transformers' own translation of their names. Raises: InputError by name."""
    tensors: dict[str, Tensor] = {}
    for path in {each.file for each in checkpoint.tensors.values()}:
        tensors |= tensors_of(path)
    with quiet():
        model, info = skeleton.model_class.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=tensors,
            dtype=skeleton.config.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    for name, found, wanted in sorted(info["mismatched_keys"])[:1]:
        raise InputError(name, tuple(found), f"must have the shape {tuple(wanted)}")
    for name in sorted(info["missing_keys"])[:1]:
        raise InputError(name, skeleton.class_name, "this tensor is missing")
    for name in sorted(info["unexpected_keys"])[:1]:
        rule = "this tensor does not belong to it"
        fitting = _classes_with({*skeleton.names, *info["unexpected_keys"]}, checkpoint)
        if fitting:
            rule = (
                f"{rule}; all of the checkpoint's are those of {fitting[0]}: name that class in config.json"
            )
        raise InputError(name, skeleton.class_name, rule)
    _check_ties(model, skeleton)
    return model


def _classes_with(names: set[str], checkpoint: Checkpoint) -> list[str]:
    """The classes of the architecture that have exactly these tensors."""
    raw, model_type, dtype = checkpoint.raw, checkpoint.model_type, checkpoint.dtype
    return [
        name
        for name in architecture(model_type).classes
        if set(Skeleton(raw, model_type, name, dtype, most_values(checkpoint)).names) == names
    ]


def _check_ties(model: Any, skeleton: Skeleton) -> None:
    """Where a file has other values for a tensor that the configuration ties, transformers would untie the two."""
    tensors = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in skeleton.model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if tensors[other] is not tensors[name]:
            rule = f"config.json ties this tensor to {other}, whose values differ"
            raise InputError(name, skeleton.class_name, rule)


def _cut(model: Any, skeleton: Skeleton, per_block: int) -> dict[str, dict[str, Tensor]]:
    """By file: one for the trunk, one for each block, and one for what neither needs."""
    places = {name: skeleton.place(name, per_block) for name in skeleton.names}
    state = model.state_dict()
    files = sorted({TRUNK, *(place.file for place in places.values())})
    return {file: dict(_gathered(file, places, state)) for file in files}


def _add(
    adapter: Path, tensors: dict[str, dict[str, Tensor]], checkpoint: Checkpoint, card: ConvertedCard
) -> None:
    """Add an adapter to the blocks' tensors. Raises: InputError where it does not fit."""
    skeleton = Skeleton(checkpoint.raw, card.architecture, card.model_class, card.dtype)
    _, of_model = skeleton.split()
    blocks = [
        nn.ModuleList(of_model[start : start + card.per_block])
        for start in range(0, card.layers, card.per_block)
    ]
    for block, layers in enumerate(blocks):
        layers.load_state_dict(tensors[block_file(block)], assign=True)
    load_adapter(blocks, card, adapter)
    for block, layers in enumerate(blocks):
        tensors[block_file(block)] = {name: tensor.contiguous() for name, tensor in effective(layers).items()}


def same_mode(draft: Path) -> None:
    """Tensors may be read by whom the umask lets read the other files; safetensors makes them the owner's alone."""
    for path in draft.glob("*.safetensors"):
        path.chmod((draft / "config.json").stat().st_mode)


def _gathered(file: str, places: dict[str, Place], state: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    for name, place in places.items():
        if place.file == file:
            yield place.name, (state[name].T if place.transposed else state[name]).contiguous()
