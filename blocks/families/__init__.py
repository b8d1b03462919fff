"""The model families, a file each: what the rest of fedblocks knows of a family stands in its file.

`my_family.py` in this folder is the family "my-family". The file defines the family's settings, its network and

    FAMILY = Family(title="...", settings=MyFamilySettings, network=MyFamily, small={...})

and nothing else is to be edited: settings, commands, simulation, report and benches look families up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from ..settings import TransformerSettings

if TYPE_CHECKING:
    from ..denoiser import Denoiser


_SMALL: dict[str, object] = {"heads": 2, "hidden_size": 10}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: what it is called, what is set of it, and the network that is built from it.

    `settings` say which data the family reads (see `ImageSettings`, `TextSettings`, `SeriesSettings`), `network` how
    it is judged; a family of several networks has a function of its settings there. `small` are settings of a model
    that is built in milliseconds, for the checks of per-example clipping; a function of its numbers of layers and
    blocks where these make another model.
    """

    title: str
    settings: type[TransformerSettings]
    network: type[Denoiser] | Callable[[Any], type[Denoiser]]
    small: Mapping[str, object] | Callable[[int, int], Mapping[str, object]] = field(default_factory=dict)

    def network_of(self, model: TransformerSettings) -> type[Denoiser]:
        """The class of the network that these settings of the family ask for."""
        return self.network if isinstance(self.network, type) else self.network(model)

    def small_settings(self, layers: int = 2, blocks: int = 1) -> TransformerSettings:
        """A model of few layers; widths that no vector length divides."""
        if callable(self.small):
            return self.settings.model_validate(dict(self.small(layers, blocks)))
        return self.settings.model_validate(_SMALL | {"layers": layers, "blocks": blocks} | dict(self.small))


def family_names() -> tuple[str, ...]:
    """All families, without importing any of them."""
    return tuple(sorted(_name_of(module.name) for module in iter_modules(__path__)))


@cache
def family(name: str) -> Family:
    """The family of this name. Raises: LookupError if there is none; TypeError where its file is incomplete."""
    if name not in family_names():
        raise LookupError(f"no model family {name!r}")
    module = import_module(f".{name.replace('-', '_')}", __name__)
    found = getattr(module, "FAMILY", None)
    if not isinstance(found, Family):
        raise TypeError(f"{module.__name__} must define FAMILY, a Family")
    tag = found.settings.model_fields["family"].default
    if tag != name:
        raise TypeError(f"{module.__name__}: the settings' field family is {tag!r}, expected {name!r}")
    return found


def _name_of(module: str) -> str:
    return module.replace("_", "-")


class _SettingsOfItsFamily:
    """Validates a model's settings by the class of the family that they name.

    Settings classes are built when they are first used (`defer_build`), so importing them imports no family.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        choices = {name: handler.generate_schema(family(name).settings) for name in family_names()}
        return core_schema.tagged_union_schema(choices, discriminator="family")


ModelSettings = Annotated[TransformerSettings, _SettingsOfItsFamily()]
"""The settings of a model of any family; the field `family` says of which."""
