"""Data connectors: from a built-in set, or the company's own disk, to examples of a model family.

Everything is checked here, before a run spends anything: shapes, finite values, classes in range.
A family's settings name their connector (see `blocks/settings.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...blocks.examples import Examples
from ...blocks.families import ModelSettings
from ...blocks.settings import ImageSettings, SeriesSettings, TextSettings, TransformerSettings
from ...errors import InputError
from ...settings import DataSource
from ...settings.contract import (
    ImageContract,
    LabelledTextContract,
    SeriesContract,
    TableContract,
    TextContract,
)
from .findings import Findings
from .images.load import load_images
from .labelled_text.load import load_labelled_text
from .one_line import told_in_one_line
from .series.load import load_series
from .tables.load import load_table
from .text.load import load_documents

C = TypeVar("C", TableContract, ImageContract, TextContract, LabelledTextContract, SeriesContract)

__all__ = ["CONNECTORS", "Examples", "load_examples"]


def load_examples(
    field: str,
    source: DataSource,
    model: ModelSettings,
    match_contrast: bool,
    findings: Findings | None = None,
) -> Examples:
    """Read, check and bring to the model's size; `field` names the setting in errors.

    `findings` takes what was found and done on the way.
    """
    findings = Findings(source.source) if findings is None else findings
    with told_in_one_line(field, source.source):
        examples = CONNECTORS[model.connector](field, source, model, match_contrast, findings)
    return examples.check(field, model.kind)


def contract_of(field: str, source: DataSource, kind: type[C]) -> C | None:
    """The contract of this source, if it has one. Raises: InputError where it is one for other data."""
    if source.contract is None or isinstance(source.contract, kind):
        return source.contract
    wanted = kind.model_fields["kind"].default
    place = f"{field.removesuffix('.source')}.contract.kind"
    raise InputError(
        place, source.contract.kind, f"this model reads another kind of data, expected {wanted!r}"
    )


def _images(
    field: str, source: DataSource, model: ImageSettings, match_contrast: bool, findings: Findings
) -> Examples:
    contract = contract_of(field, source, ImageContract)
    images, labels = load_images(field, source, model, match_contrast, contract, findings)
    return Examples(images, labels) if model.label_side == "targets" else Examples(labels, images)


def _text(
    field: str, source: DataSource, model: TextSettings, match_contrast: bool, findings: Findings
) -> Examples:
    return load_documents(field, source, model, contract_of(field, source, TextContract), findings)


def _labelled_text(
    field: str, source: DataSource, model: Any, match_contrast: bool, findings: Findings
) -> Examples:
    contract = contract_of(field, source, LabelledTextContract)
    return load_labelled_text(field, source, model, contract, findings)


def _series(
    field: str, source: DataSource, model: SeriesSettings, match_contrast: bool, findings: Findings
) -> Examples:
    contract = contract_of(field, source, SeriesContract)
    return Examples(*load_series(field, source, model, contract=contract, findings=findings))


def _tables(
    field: str, source: DataSource, model: TransformerSettings, match_contrast: bool, findings: Findings
) -> Examples:
    contract = contract_of(field, source, TableContract)
    if contract is None:
        rule = "rows need a contract; `fedblocks data inspect` drafts one from a file"
        raise InputError(field, source.source, rule)
    return load_table(field, source.source, contract, findings)


# A connector takes the settings that name it.
CONNECTORS: dict[str, Callable[[str, DataSource, Any, bool, Findings], Examples]] = {
    "images": _images,
    "text": _text,
    "labelled-text": _labelled_text,
    "series": _series,
    "tables": _tables,
}
