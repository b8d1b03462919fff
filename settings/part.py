"""What all settings have in common: frozen, nothing unknown, and a complaint that names field, value and rule."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def require(holds: bool, field: str, value: object, rule: str) -> None:
    """Refuse the settings unless the rule holds; the complaint keeps field, value and rule apart (see `load`)."""
    if not holds:
        raise PydanticCustomError("rule", "{field}: {rule}", {"field": field, "value": value, "rule": rule})


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, raw: Any) -> Any:
        """TOML has no null: "none" stands for it."""
        if not isinstance(raw, dict):
            return raw
        return {key: None if value == "none" else value for key, value in raw.items()}
