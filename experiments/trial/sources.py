"""A file of private data for each company of a trial: the examples that a simulation of the preset deals to it.

The files are of formats that `fedblocks company import` reads (.npz, Parquet, JSON lines), so that a trial's data
take the way of a real company's. What was read from such a file must be the very examples of the simulation; where it
is not, the preset's private data cannot be cut up, and each company needs a source of its own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...blocks.examples import Examples
from ...blocks.pretrained.settings import PretrainedSettings
from ...blocks.settings import ImageSettings, TextSettings
from ...client.data import load_examples
from ...client.data.findings import Findings
from ...client.data.images.load import read_arrays
from ...client.data.images.tally import Target
from ...client.data.labelled_text.rows import rows_of
from ...client.data.tables.load import rows_as_read
from ...client.data.text.own_tokenizer import OwnTokenizer, folder_of
from ...client.data.text.tokenizer import Tokenizer
from ...errors import InputError
from ...protocol import private_file
from ...settings import DataSource, SimulationSettings
from ...settings.contract import ImageContract, LabelledTextContract, TableContract, TextContract
from ..simulation.preparation import Inputs, read_inputs

FIELD = "data.private.source"
Rows = npt.NDArray[np.int64]
# Which examples, as positions among all private ones, and what they are -> a file's suffix and content.
Writer = Callable[[Rows, Examples], tuple[str, bytes]]


_OWN = "give each company a source of its own: [data.private.sources]"


def write_sources(settings: SimulationSettings, names: Sequence[str], folder: Path) -> dict[str, DataSource]:
    """Write FOLDER/NAME.* for each company, or take the sources that the settings name for them.

    Raises: InputError where the settings name others, or their private data cannot be cut up.
    """
    private = settings.data.private
    shared = private.model_dump(exclude={"sources", "source"}, exclude_none=True)
    if private.sources:
        if set(private.sources) != set(names):
            rule = f"expected the companies of the trial: {', '.join(sorted(names))}"
            raise InputError("data.private.sources", ", ".join(sorted(private.sources)), rule)
        return {
            name: DataSource.model_validate(shared | {"source": path})
            for name, path in private.sources.items()
        }
    connector = settings.model.connector
    if connector not in _WRITERS:
        raise InputError(FIELD, private.source, f"data of this kind ({connector}) cannot be cut up; {_OWN}")
    inputs = read_inputs(settings)
    write = _WRITERS[connector](settings, inputs)
    found = {}
    for name, (dealt, examples) in zip(sorted(names), inputs.companies.items(), strict=True):
        suffix, content = write(inputs.rows[dealt], examples)
        path = folder / f"{name}{suffix}"
        private_file.write(path, content)
        found[name] = DataSource.model_validate(shared | {"source": str(path)})
        read = load_examples(FIELD, found[name], settings.model, settings.data.match_contrast)
        if read.digest != examples.digest:
            path.unlink()
            rule = f"a part of it is not read as the same examples again; {_OWN}"
            raise InputError(FIELD, private.source, rule)
    return found


def _images(settings: SimulationSettings, inputs: Inputs) -> Writer:
    source, model = settings.data.private, settings.model
    assert isinstance(model, ImageSettings)
    contract = source.contract
    known = (
        contract
        if isinstance(contract, ImageContract)
        else ImageContract.model_validate({"label": source.label})
    )
    images, numbers = read_arrays(
        FIELD, source.source, Target.of(model, known), model.classes, known, Findings(source.source)
    )
    labels = numbers if known.labels is None else np.array(known.labels)[numbers]

    def write(rows: Rows, examples: Examples) -> tuple[str, bytes]:
        content = io.BytesIO()
        np.savez_compressed(content, images=images[rows], labels=labels[rows])
        return ".npz", content.getvalue()

    return write


def _tables(settings: SimulationSettings, inputs: Inputs) -> Writer:
    import pyarrow.parquet as pq

    source = settings.data.private
    contract = source.contract
    assert isinstance(contract, TableContract)
    table = rows_as_read(FIELD, source.source, contract)
    _check_rows(source, table.num_rows, inputs)

    def write(rows: Rows, examples: Examples) -> tuple[str, bytes]:
        content = io.BytesIO()
        pq.write_table(table.take(rows), content)
        return ".parquet", content.getvalue()

    return write


def _check_rows(source: DataSource, found: int, inputs: Inputs) -> None:
    """Raises: InputError where the source has rows that are no examples: positions would not be those of rows."""
    if found != inputs.private:
        left = found - inputs.private
        rule = f"{left} rows are left out by the contract: cannot be cut up; {_OWN}"
        raise InputError(FIELD, source.source, rule)


def _text(settings: SimulationSettings, inputs: Inputs) -> Writer:
    model, contract = settings.model, settings.data.private.contract
    tokenizer: Tokenizer | OwnTokenizer
    if isinstance(model, PretrainedSettings):
        tokenizer = OwnTokenizer.of("model.pretrained", folder_of(model.pretrained))
    else:
        assert isinstance(model, TextSettings)
        tokenizer = Tokenizer.of("model.tokenizer", model.tokenizer)
    field = contract.field if isinstance(contract, TextContract) else TextContract().field

    def write(rows: Rows, examples: Examples) -> tuple[str, bytes]:
        # Windows follow one another in a stretch, so as one document they are cut at the same places again.
        text = tokenizer.decode(examples.inputs.numpy().reshape(-1))
        return ".jsonl", f"{json.dumps({field: text})}\n".encode()

    return write


def _labelled_text(settings: SimulationSettings, inputs: Inputs) -> Writer:
    source = settings.data.private
    told = source.contract
    known = told if isinstance(told, LabelledTextContract) else LabelledTextContract(label=source.label)
    every = list(rows_of(FIELD, source.source, known, Findings(source.source)))
    _check_rows(source, len(every), inputs)

    def write(rows: Rows, examples: Examples) -> tuple[str, bytes]:
        lines = []
        for row, number in zip(rows.tolist(), examples.targets.tolist(), strict=True):
            label = number if known.labels is None else known.labels[number]
            fields = {known.text: every[row].text, known.label: label}
            if known.group is not None:
                fields[known.group] = every[row].group
            lines.append(f"{json.dumps(fields)}\n")
        return ".jsonl", "".join(lines).encode()

    return write


_WRITERS: dict[str, Callable[[SimulationSettings, Inputs], Writer]] = {
    "images": _images,
    "labelled-text": _labelled_text,
    "tables": _tables,
    "text": _text,
}
