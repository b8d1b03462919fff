"""The data contract: what a company's file means, written down by a person rather than guessed by a reader.

    kind = "table"
    label = "diagnosis"
    labels = ["benign", "malignant"]
    numeric = { radius = [5.0, 30.0] }

`fedblocks data inspect FILE` drafts one. A contract holds no statistic of anybody's data: ranges and values that a
column may take are those of the field it comes from, so that no example changes how another one is read.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ..blocks.settings import Part, require
from ..errors import InputError
from .load import parsed_toml, read_text

Range = tuple[float, float]
Values = tuple[str, ...]


class _Contract(Part):
    """What every kind has. `least_examples`: fewer are refused, since so few are hardly hidden by any noise."""

    least_examples: int = Field(10, ge=1)

    def model_fields_told(self) -> dict[str, object]:
        """Fields of the model that the contract settles, by their names in `[model]`."""
        return {}


def _not_both(table: str | None, query: str | None) -> None:
    require(table is None or query is None, "query", query, "give table or query, not both")


class FileContract(_Contract):
    """How a table is written down. Excel, Parquet and Feather say so themselves.

    `encoding` none: UTF-8, with or without a byte order mark. `sheet`: of an Excel file; none: the first.
    `table` or `query`: of a database; see `client/data/tables/frames.py`.
    """

    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    encoding: str | None = None
    sheet: str | None = None
    table: str | None = None
    query: str | None = None

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        require(self.decimal != self.separator, "decimal", self.decimal, "must not be the separator too")
        _not_both(self.table, self.query)
        return self


class TableContract(FileContract):
    """Rows for the tabular family.

    `numeric`: each column with the range that its values may have, which is scaled to [-1, 1]; what lies outside is
    moved to its end. `categories`: each column with its values, as text. `label` with `labels`, its classes in order,
    or with `range`, that of a number. A column that is named nowhere is not read.

    `logarithmic`: numeric columns whose logarithm is scaled instead, as fits amounts and counts.

    `missing`: what to do with an empty cell, or a value of a category that is not listed: "refuse" it, "drop" its
    row, or "mark" it: a number becomes the middle of its range and gets a column that says so, a category gets a
    value of its own. A row without label is dropped unless missing = "refuse".
    """

    kind: Literal["table"] = "table"
    label: str
    labels: Values | None = None
    range: Range | None = None
    numeric: dict[str, Range] = Field(default_factory=dict)
    logarithmic: Values = ()
    categories: dict[str, Values] = Field(default_factory=dict)
    missing: Literal["refuse", "drop", "mark"] = "refuse"
    company: str | None = Field(None, description="the column that names the company, in a simulation")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        both = (self.labels is None) == (self.range is None)
        require(not both, "labels", self.labels, "give labels for classes, or range for a number")
        require(self.labels is None or len(self.labels) > 1, "labels", self.labels, "expected two or more")
        require(len(self.numeric) + len(self.categories) > 0, "numeric", {}, "name the columns to read")
        for name, (low, high) in self.numeric.items() | (
            {self.label: self.range}.items() if self.range else set()
        ):
            require(low < high, f"numeric.{name}", (low, high), "expected [lowest, highest]")
        for name in self.logarithmic:
            require(name in self.numeric, "logarithmic", name, "is not among the numeric columns")
            require(
                self.numeric[name][0] > 0,
                f"numeric.{name}",
                self.numeric[name],
                "a logarithm needs numbers above 0",
            )
        columns = [self.label, *self.numeric, *self.categories, *([self.company] if self.company else [])]
        for name in columns:
            require(columns.count(name) == 1, "label", name, "is named for two purposes")
        for name, values in (self.categories | ({self.label: self.labels} if self.labels else {})).items():
            require(
                len(values) == len(set(values)) > 0,
                f"categories.{name}",
                values,
                "names a value twice, or none",
            )
        return self

    def model_fields_told(self) -> dict[str, object]:
        marked = self.missing == "mark"
        sizes = [len(values) + marked for values in self.categories.values()]
        return {
            "numeric": len(self.numeric),
            "categories": [*sizes, *([2] * len(self.numeric) if marked else [])],
            "classes": "none" if self.labels is None else len(self.labels),
        }


class ImageContract(FileContract):
    """Labelled images: a folder a class (or a .zip of such), a table of paths, of image files or of pixels, a .npz.

    `labels`: the classes in order, as the folders are called or as the label column has them; none: folder names in
    sorted order, which must be the same in public and private data, or whole numbers. `path`: the column of a table
    that holds file names relative to it; `image`: one that holds the bytes of image files. `fit`: how an image that
    is not square becomes so. `background`: what stands behind transparent pixels and fills what is padded. `bits`:
    of a whole-number pixel (12 of many X-ray images); none: all 16 of a 16-bit file, 8 of arrays and tables.
    `broken`: what to do with a file that cannot be read, or a row without file or label.
    """

    kind: Literal["images"] = "images"
    label: str = "label"
    labels: Values | None = None
    path: str | None = None
    image: str | None = None
    fit: Literal["refuse", "stretch", "crop", "pad"] = "refuse"
    background: Literal["white", "black"] = "white"
    bits: int | None = Field(None, ge=1, le=32)
    broken: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _told_once(self) -> Self:
        require(self.path is None or self.image is None, "image", self.image, "give path or image, not both")
        for name in (self.path, self.image):
            require(name != self.label, "label", self.label, "is named for two purposes")
        if self.labels is not None:
            require(len(self.labels) > 1, "labels", self.labels, "expected two or more")
            require(len(self.labels) == len(set(self.labels)), "labels", self.labels, "names a class twice")
        return self

    def model_fields_told(self) -> dict[str, object]:
        return {} if self.labels is None else {"classes": len(self.labels)}


class LabelledTextContract(FileContract):
    """Texts with a class each: JSON lines, Parquet, CSV and the other tables.

    `text`, `label`: fields of a line of JSON, by their paths ("body.text"), or columns. `labels`: the classes in
    order, as the data call them; none: whole numbers from 0. `group`: the field that says whose a text is, a person
    or a document; see `client/data/group_keys.py` for which values count as one. `missing`: a line or row without
    text, label or group is refused, or dropped.
    """

    kind: Literal["labelled-text"] = "labelled-text"
    text: str = "text"
    label: str = "label"
    labels: Values | None = None
    group: str | None = None
    missing: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _told_once(self) -> Self:
        named = [self.text, self.label, *([] if self.group is None else [self.group])]
        for name in named:
            require(named.count(name) == 1, "label", name, "is named for two purposes")
        if self.labels is not None:
            require(len(self.labels) > 1, "labels", self.labels, "expected two or more")
            cleaned = [unicodedata.normalize("NFC", label.strip()) for label in self.labels]
            require("" not in cleaned, "labels", self.labels, "has a class without a name")
            require(len(cleaned) == len(set(cleaned)), "labels", self.labels, "names a class twice")
        return self

    def model_fields_told(self) -> dict[str, object]:
        return {} if self.labels is None else {"classes": len(self.labels)}


class TextContract(_Contract):
    """Documents: a text file or a folder of them, JSON lines, Parquet, a .zip of these, or a table of a database.

    `field`: of a line of JSON or a column, by its path ("body.text"). `table` or `query`: of a database. `encoding`
    none: UTF-8; a file that begins with a byte order mark is read by that. `missing`: a line or row without text is
    refused, or dropped.

    `packing`: "windows", a document is cut into windows of tokens that do not overlap, each an example; "cut", its
    first window is its one example, and the rest is left out.

    `across_documents`: whether a window of tokens may hold the end of one document and the start of the next; if
    not, a document's last tokens that fill no window are dropped.

    `group`: the field of a line of JSON, or the column, that says whose a document is, as in `LabelledTextContract`.
    """

    kind: Literal["text"] = "text"
    field: str = "text"
    encoding: str | None = None
    missing: Literal["refuse", "drop"] = "refuse"
    packing: Literal["windows", "cut"] = "windows"
    across_documents: bool = False
    group: str | None = None
    table: str | None = None
    query: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        _not_both(self.table, self.query)
        return self

    @model_validator(mode="after")
    def _one_document(self) -> Self:
        across = self.across_documents
        require(not across or self.packing == "windows", "packing", self.packing, "needs documents apart")
        require(not across or self.group is None, "group", self.group, "needs documents apart")
        require(self.group != self.field, "group", self.group, "is named for two purposes")
        return self


class SeriesContract(FileContract):
    """Time series, one row a time.

    `time`: the column of times, or several that make one when joined by a space ("Date" and "Time"); none: the one
    that holds times, and if there is none, rows are in order and evenly spaced. `day_first`: of dates such as
    03/04/2024; none: found from a row that has but one meaning, and refused where there is no such row. `unit`: of
    times that are numbers, since 1970. `zone`: of clocks that tell no offset ("Europe/Berlin"), and of days.

    `channels`: columns of values; none: all numeric ones. `series`: the column that says whose row it is, where a
    file holds several series. `order`: rows out of order are refused or sorted. `twice`: what to do with two rows
    of one time.

    `step`: the time from row to row: "15min", "1h", "1d", "1w", "1month", "1year", "weekday" (Monday to Friday), or
    "row", whatever the times say; none: the most frequent one. What is missing in between is a gap, which no window
    crosses. `resample`: rows at any times are brought to one a step, each of the rows that fall into it.

    `missing`: an empty cell is refused, or a gap. `resolution`: differences as small as this are rounding; a context
    that varies by no more is left out, as is one that is constant.
    """

    kind: Literal["series"] = "series"
    time: str | Values | None = None
    day_first: bool | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    zone: str | None = None
    channels: Values | None = None
    series: str | None = None
    order: Literal["refuse", "sort"] = "refuse"
    twice: Literal["refuse", "first", "last", "mean"] = "refuse"
    step: str | None = None
    resample: Literal["mean", "sum", "first", "last"] | None = None
    missing: Literal["refuse", "gap"] = "refuse"
    resolution: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.step is not None:
            require(STEP.fullmatch(self.step) is not None, "step", self.step, f"expected {STEP_FORMS}")
        grid = self.step is not None and self.step not in ("row", "weekday")
        require(self.resample is None or grid, "resample", self.resample, "needs a step, as 1h or 1month")
        if self.zone is not None:
            require(is_zone(self.zone), "zone", self.zone, "no such time zone; expected as Europe/Berlin")
        named = [*self.times, *(self.channels or ()), *([self.series] if self.series else [])]
        for name in named:
            require(named.count(name) == 1, "channels", name, "is named for two purposes")
        return self

    @property
    def times(self) -> Values:
        """The columns that together tell the time."""
        return (self.time,) if isinstance(self.time, str) else self.time or ()


STEP = re.compile(r"row|weekday|([1-9]\d*)?(s|min|h|d|w|month|quarter|year)")
STEP_FORMS = "15min, 1h, 1d, 1w, 1month, 1quarter, 1year, weekday or row"


def is_zone(name: str) -> bool:
    """Whether there is a time zone of this name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def contract_file(path: str) -> dict[str, Any]:
    """The text of a contract. Raises: InputError naming the file."""
    return parsed_toml("contract", path, read_text("contract", Path(path)))


def settle(raw: dict[str, Any]) -> None:
    """Put the contracts that settings name in their place, and into the model what they settle of it.

    `data.contract` is for public and private data alike. A field of the model that the settings and a contract both
    tell must be the same. Raises: InputError naming the file or the field.
    """
    data = raw.get("data")
    if not isinstance(data, dict):
        return
    shared = data.pop("contract", None)
    for side in ("public", "private"):
        source = data.get(side)
        if not isinstance(source, dict):
            continue
        found = source.get("contract", shared)
        if found is None:
            continue
        source["contract"] = contract_file(found) if isinstance(found, str) else found
        model = raw.setdefault("model", {})
        if isinstance(model, dict):
            _settle_model(model, source["contract"], f"data.{side}.contract")


def _settle_model(model: dict[str, Any], raw: object, place: str) -> None:
    try:
        told = _CONTRACT.validate_python(raw).model_fields_told()
    except ValidationError:
        return  # the settings' own validation says what is wrong with it, by the field's whole name
    for name, value in told.items():
        if model.setdefault(name, value) != value:
            raise InputError(f"model.{name}", model[name], f"{place} says {value}")


DataContract = Annotated[
    TableContract | ImageContract | TextContract | LabelledTextContract | SeriesContract,
    Field(discriminator="kind"),
]
"""A contract of any kind."""
_CONTRACT: TypeAdapter[DataContract] = TypeAdapter(DataContract)
