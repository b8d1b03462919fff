"""What a company imports: its source, the contract to read it by and the model that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..blocks.families import ModelSettings
from ..client.importing import table_model
from ..errors import InputError
from ..settings import DataSource, PublicDataSettings, validated
from ..settings.contract import TableContract, contract_file
from .given_plan import model_of


@dataclass(frozen=True)
class Told:
    source: DataSource
    model: ModelSettings
    match_contrast: bool


def source_of(
    source: str, contract: Path | None, model: str | None, query: str | None, match_contrast: bool | None
) -> Told:
    """Raises: InputError naming the option that is missing, or the file and field that are wrong."""
    found, public, contrast = (None, None, None) if model is None else model_of(model)
    fields: dict[str, Any] = {} if public is None else public.model_dump(exclude_none=True)
    if contract is not None:
        fields["contract"] = contract_file(str(contract))
    if query is not None:
        if "contract" not in fields:
            raise InputError("--query", query, "needs a --contract, which says what its columns mean")
        fields["contract"] = {k: v for k, v in fields["contract"].items() if k != "table"} | {"query": query}
    read = validated(DataSource, fields | {"source": source})
    if found is None:
        if not isinstance(read.contract, TableContract):
            rule = "say what model the data are for: the coordinator's plan.json or TOML file, or a preset"
            raise InputError("--model", model, rule)
        found = table_model(read.contract)
    if match_contrast is None:
        match_contrast = PublicDataSettings().match_contrast if contrast is None else contrast
    return Told(read, found, match_contrast)
