"""An adapted model in the formats of others: a checkpoint of transformers, or an adapter of peft.

A vision transformer whose class has such a head is written as that class. Other classifiers' heads, a linear map of
the pooled tokens, mostly after a norm, are in head.safetensors, which README.md has the code for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors.torch import save
from torch import Tensor, nn

from ..errors import InputError
from .model_file import ModelCard
from .model_readme import model_readme
from .pretrained import places
from .pretrained.adapters import save_adapter
from .pretrained.architectures import architecture
from .pretrained.card import ConvertedCard
from .pretrained.denoiser import PretrainedDenoiser
from .pretrained.export import ClassHead, export
from .pretrained.whitening import Whitening

Form = Literal["checkpoint", "adapter"]
HEAD_FILE = "head.safetensors"


def hand_back(model: PretrainedDenoiser, about: ModelCard, to: Path, form: Form) -> None:
    """Write the model, with a README.md that says what it is, to the new folder `to`.

    Raises: InputError where `to` exists, or for the adapter of a model that has none.
    """
    folder, card = places.converted(model.settings.pretrained)
    layers = [model.block(b).layers for b in range(card.blocks)]
    if form == "adapter" and model.settings.trains != "lora":
        rule = f'the model has no low-rank adapters: model.trains is "{model.settings.trains}"'
        raise InputError("--format", form, rule)
    head = None if form == "adapter" else class_head(model, card, about)
    beside = {} if head is not None else head_tensors(model)
    files = {HEAD_FILE: save(beside, {"format": "pt"})} if beside else {}
    files["README.md"] = model_readme(model, card, about, form, head is not None).encode()
    if form == "adapter":
        save_adapter(layers, card, folder, to, files)
    else:
        export(model.trunk, layers, card, folder, to, files, head)


def class_head(model: PretrainedDenoiser, card: ConvertedCard, about: ModelCard) -> ClassHead | None:
    """The last block's head as that of a class of transformers; none where no class has one that is equal."""
    name = architecture(card.architecture).image_classifier
    if name is None or getattr(model, "pooling", None) != "first":
        return None
    tensors = {f"classifier.{key.removeprefix('head.')}": value for key, value in head_tensors(model).items()}
    return ClassHead(name, tensors, tuple(about.name_of(i) for i in range(model.settings.kind.labels or 0)))


def head_tensors(model: PretrainedDenoiser) -> dict[str, Tensor]:
    """What the last block reads a class with: a linear map "head", mostly after a "norm"; a decoder has none.

    A map before the head that never changes is written as part of it.
    """
    interface = model.block(len(model.blocks) - 1).interface
    own = {
        name: tensor
        for name, tensor in interface.state_dict().items()
        if name.partition(".")[0] in ("norm", "head")
    }
    if own and isinstance(whitening := interface["norm"], Whitening):
        head = interface["head"]
        assert isinstance(head, nn.Linear)
        own = dict(zip(("head.weight", "head.bias"), whitening.folded(head), strict=True))
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
