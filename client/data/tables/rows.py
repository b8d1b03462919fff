"""Rows of a table without their label, as a prediction needs them: by the same contract as those with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....errors import InputError
from ....settings.contract import TableContract
from ..findings import Findings, some
from .built_in import BUILT_IN
from .csv_files import CSV, batches_of_csv, inner_suffix
from .frames import read_frame
from .load import _Reading, batches_of

if TYPE_CHECKING:
    import pyarrow as pa


def load_rows(
    field: str, source: str, contract: TableContract, findings: Findings
) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Numbers of the rows (N,), from 1, and inputs (N, numbers + categories) float32.

    Where the contract drops rows with empty cells, their numbers are missing. Raises: InputError as `load_table`.
    """
    told = contract.model_copy(update={"company": None})
    numbers, inputs, first = [], [], 1
    for batch in _batches(field, source, told):
        reading = _WithoutLabel(field, source, told, findings, first)
        inputs.append(reading.piece(batch).inputs)
        numbers.append(first + np.flatnonzero(reading.kept))
        first += batch.num_rows
    if sum(map(len, inputs)) == 0:
        raise InputError(field, source, "no row that can be used")
    return np.concatenate(numbers), torch.from_numpy(np.concatenate(inputs))


class _WithoutLabel(_Reading):
    """`kept` (n,): which rows of the batch are not left out."""

    kept: npt.NDArray[np.bool_]

    def _targets(self, batch: pa.RecordBatch, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        self.kept = keep
        return np.zeros(len(keep), dtype=np.float32)


def _batches(field: str, source: str, contract: TableContract) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    columns = [*contract.numeric, *contract.categories]
    if source not in BUILT_IN and inner_suffix(Path(source)) in CSV:
        types = {name: pa.string() if name in contract.categories else pa.float64() for name in columns}
        yield from batches_of_csv(field, Path(source), contract, types)
        return
    frame = BUILT_IN[source]() if source in BUILT_IN else read_frame(field, source, contract)
    for name in columns:
        if name not in frame.columns:
            raise InputError(field, source, f"column {name!r} is missing; there are {some(frame.columns)}")
    yield from batches_of(field, frame, columns)
