"""A model of transformers without its tensors: which there are, and where each goes in a converted folder.

Configurations come from strangers: of theirs only the fields that this version of transformers declares for the
architecture are taken, and how attention is computed is set here.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ...errors import InputError
from .architectures import architecture
from .architectures.common import HEAD, Trunk
from .card import REST, TRUNK, block_file
from .norms import PretrainedRMSNorm

# Beside the fields of an architecture's own class; the last ones are older names that its class still translates.
_SHARED = {"id2label", "label2id", "num_labels", "problem_type", "tie_word_embeddings"}
_OLDER = {
    "rope_theta", "rope_scaling", "rope_local_base_freq", "global_rope_theta", "local_rope_theta",
    "sliding_window_pattern", "global_attn_every_n_layers", "head_dim", "partial_rotary_factor",
    "original_max_position_embeddings",
}  # fmt: skip
_QUIET = threading.RLock()
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies in a converted folder: its file and its name there."""

    file: str
    name: str
    transposed: bool = False


class Skeleton:
    """The model that a configuration describes, its parameters on torch's "meta" device, buffers as they are."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        model_type: str,
        class_name: str,
        dtype: str,
        most_values: int | None = None,
    ) -> None:
        """`most_values`: the largest model that is accepted; asked before any of it takes memory.

        Raises: InputError for a configuration that transformers refuses, or that of a larger model.
        """
        import_transformers()
        self.trunk_class = architecture(model_type)
        self.class_name = class_name
        self.config = _config(raw, self.trunk_class)
        self.trunk_class.refuse(self.config)
        self.config.dtype = TORCH_DTYPES[dtype]
        self.model_class = getattr(_models(self.trunk_class), class_name)
        if most_values is not None:
            with torch.device("meta"):
                values = sum(parameter.numel() for parameter in self._new().parameters())
            if values > most_values:
                rule = f"describes a model of {values:,} values, far more than the checkpoint has"
                raise InputError("config.json", class_name, rule)
        with _without_tensors():
            self.model = self._new()
        self.model.eval()

    def _new(self) -> Any:
        """The model as its class makes it."""
        try:
            with torch.random.fork_rng(devices=[]), quiet():
                return self.model_class(self.config)
        except Exception as error:  # whatever a stranger's values make of it
            raise _refused(self.class_name, error) from error

    @classmethod
    def of_folder(cls, folder: Path, model_type: str, class_name: str, dtype: str) -> Skeleton:
        """That of a converted folder."""
        return cls(json.loads((folder / "config.json").read_bytes()), model_type, class_name, dtype)

    @property
    def base(self) -> Any:
        """The bare model in it."""
        return self.model.base_model

    @cached_property
    def prefix(self) -> str:
        """What names of the bare model's tensors start with in the whole one's."""
        return "" if self.base is self.model else f"{self.model.base_model_prefix}."

    @cached_property
    def names(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds, without those that are tied to another."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[name] = tensor
        return found

    def place(self, name: str, per_block: int) -> Place:
        """Where the tensor of this name belongs."""
        if name == f"{HEAD}.weight" and self.trunk_class.kind == "decoder":
            return Place(TRUNK, name)
        own = name.removeprefix(self.prefix)
        if not name.startswith(self.prefix):
            return Place(REST, name)
        layers = f"{self.trunk_class.layers_at}."
        if own.startswith(layers):
            number, _, inner = own.removeprefix(layers).partition(".")
            block, within = divmod(int(number), per_block)
            return Place(block_file(block), f"{within}.{inner}", self._transposed(name))
        if own.partition(".")[0] in self.trunk_class.parts:
            return Place(TRUNK, own)
        return Place(REST, name)

    @property
    def has_transposed(self) -> bool:
        """Whether weights lie the other way round in the checkpoint than in linear maps."""
        return any(type(module).__name__ == "Conv1D" for module in self.model.modules())

    def _transposed(self, name: str) -> bool:
        """Whether it is the weight of a `Conv1D`, (d, p), that is a linear map's here, (p, d)."""
        owner, _, parameter = name.rpartition(".")
        return parameter == "weight" and type(self.model.get_submodule(owner)).__name__ == "Conv1D"

    def split(self) -> tuple[Trunk, list[nn.Module]]:
        """Its trunk and all its layers, with the layer kinds that private clipping knows, still without tensors."""
        base = self.base
        head = getattr(self.model, HEAD, None)
        tied = head is not None and f"{HEAD}.weight" not in self.names
        layers = list(base.get_submodule(self.trunk_class.layers_at))
        trunk = self.trunk_class(base, self.config, None if tied else head)
        for module in (trunk, *layers):
            _replace(module, self.trunk_class.norm_offset)
        return trunk, layers


def import_transformers() -> Any:
    """The library, imported when it is first needed. Raises: ModuleNotFoundError where it is not installed."""
    return import_module("transformers")


def _models(trunk: type[Trunk]) -> Any:
    return import_module(f"transformers.models.{trunk.package}.modeling_{trunk.package}")


def _config(raw: Mapping[str, Any], trunk: type[Trunk]) -> Any:
    """The configuration of an architecture's class, attention by torch's own function and nothing dropped."""
    package = import_module(f"transformers.models.{trunk.package}.configuration_{trunk.package}")
    kind = getattr(package, trunk.config_class)
    inherited = {field.name for field in dataclasses.fields(import_transformers().PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(kind)} - inherited
    known = own | set(kind.attribute_map) | _SHARED | _OLDER
    try:
        with quiet():
            config = kind(**{key: value for key, value in raw.items() if key in known})
    except Exception as error:  # whatever a stranger's values make of it
        raise _refused(trunk.config_class, error) from error
    for field in dataclasses.fields(kind):
        if field.name.endswith(("dropout", "dropout_prob", "_pdrop", "probs_dropout_prob", "drop_path_rate")):
            setattr(config, field.name, 0.0)
    if hasattr(config, "chunk_size_feed_forward"):
        config.chunk_size_feed_forward = 0
    config._attn_implementation = "sdpa"
    return config


def _refused(class_name: str, error: Exception) -> InputError:
    text = " ".join(str(error).split()) or type(error).__name__
    return InputError("config.json", class_name, f"transformers refuses it: {type(error).__name__}: {text}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports that transformers prints: what is wrong is raised."""
    logging: Any = import_module("transformers.utils.logging")
    with _QUIET:  # else one thread would keep another's silence as what was before
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(50)  # nothing but what is critical
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


class _Making(threading.local):
    """Whether this thread makes modules without tensors."""

    without_tensors = False


_making = _Making()


def _on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta or not _making.without_tensors:
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


# Once and for good: PyTorch calls all such hooks in every thread that makes a module, and must not find their list
# changed meanwhile.
register_module_parameter_registration_hook(_on_meta)  # type: ignore[arg-type]  # it may return one


@contextmanager
def _without_tensors() -> Iterator[None]:
    """Parameters of modules made in this thread are on the meta device: none is allocated or drawn."""
    _making.without_tensors = True
    try:
        yield
    finally:
        _making.without_tensors = False


def _replace(module: nn.Module, offset: bool) -> None:
    """Put a linear map in the place of each `Conv1D`, and our RMSNorm in that of the architecture's own."""
    child: Any
    for name, child in module.named_children():
        kind = type(child).__name__
        if kind.endswith("RMSNorm") and not isinstance(child, PretrainedRMSNorm):
            eps = child.variance_epsilon if hasattr(child, "variance_epsilon") else child.eps
            assert isinstance(child.weight, nn.Parameter)
            setattr(
                module,
                name,
                PretrainedRMSNorm(len(child.weight), float(eps), offset=offset, weight=child.weight),
            )
        elif kind == "Conv1D":
            setattr(module, name, nn.Linear(child.nx, child.nf, device="meta"))
        else:
            _replace(child, offset)
