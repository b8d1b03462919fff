"""Examples as every model family reads them: clean inputs and the targets that its blocks denoise."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import atomic_file
from ..errors import DamagedFile, InputError
from .settings import DataKind
from .state import digest


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(
        f"{path}: not a whole file of examples ({type(error).__name__}); put it back from a copy"
    )


Index = npt.NDArray[np.int64] | npt.NDArray[np.bool_] | Tensor | slice


@dataclass(frozen=True)
class Groups:
    """Which records belong together: `keys` (N, 4) int64, a digest of each record's value in `column`."""

    column: str
    keys: Tensor

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self.sizes)

    def __getitem__(self, index: Index) -> Groups:
        return Groups(self.column, self.keys[index])

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(N,) the group of each record, from 0."""
        return self._counted[0]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(G,) how many records each group has."""
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows = np.ascontiguousarray(self.keys.numpy())
        if not len(rows):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        values = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
        _, numbers, sizes = np.unique(values, return_inverse=True, return_counts=True)
        return numbers.reshape(-1).astype(np.int64), sizes.astype(np.int64)


@dataclass(frozen=True)
class Examples:
    """inputs (N, ...) and targets (N, ...): float32 where real, int64 where they name classes or tokens.

    `groups`: whose each of the N records is, where that is told.
    """

    inputs: Tensor
    targets: Tensor
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Index) -> Examples:
        groups = None if self.groups is None else self.groups[index]
        return Examples(self.inputs[index], self.targets[index], groups)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all values, 32 bytes."""
        values = {"inputs": self.inputs, "targets": self.targets}
        return digest(values if self.groups is None else values | self._grouped(self.groups))

    @staticmethod
    def _grouped(groups: Groups) -> dict[str, Tensor]:
        column = torch.frombuffer(bytearray(groups.column.encode()), dtype=torch.uint8)
        return {"group_column": column, "groups": groups.keys}

    def to(self, device: torch.device | str) -> Examples:
        return Examples(self.inputs.to(device), self.targets.to(device), self.groups)

    def save(self, path: Path) -> None:
        """A file that its owner alone may read."""
        values = {"inputs": self.inputs, "targets": self.targets}
        values |= {} if self.groups is None else self._grouped(self.groups)
        arrays = {name: tensor.numpy() for name, tensor in values.items()}
        with atomic_file.replacing(path, mode=atomic_file.OWNER_ONLY) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read back what `save` wrote. Raises: DamagedFile where the file is damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                groups = None
                if "groups" in file.files:
                    column = file["group_column"].tobytes().decode()
                    groups = Groups(column, torch.from_numpy(file["groups"]))
                return cls(torch.from_numpy(file["inputs"]), torch.from_numpy(file["targets"]), groups)
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(path, error) from None
        except (ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            raise _damaged(path, error) from None

    def check(self, field: str, kind: DataKind) -> Examples:
        """Refuse what is not of this kind: shapes, types, classes out of range, values not finite."""
        if len(self.inputs) != len(self.targets):
            raise InputError(field, len(self.inputs), f"{len(self.targets)} targets for as many inputs")
        if self.groups is not None:
            shape, kept = tuple(self.groups.keys.shape), self.groups.keys.dtype
            if shape != (len(self.inputs), 4) or kept != torch.int64 or not self.groups.column:
                raise InputError(f"{field}.groups", shape, f"expected {(len(self.inputs), 4)} and a column")
        for name, values, wanted, classes in (
            ("inputs", self.inputs, kind.inputs, kind.input_classes),
            ("targets", self.targets, kind.targets, kind.target_classes),
        ):
            if tuple(values.shape[1:]) != wanted:
                raise InputError(f"{field}.{name}", tuple(values.shape[1:]), f"expected {wanted} an example")
            if classes is None:
                if values.dtype != torch.float32 or not torch.isfinite(values).all():
                    raise InputError(f"{field}.{name}", str(values.dtype), "expected finite float32 values")
            elif values.dtype != torch.int64 or (
                values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes
            ):
                raise InputError(
                    f"{field}.{name}", str(values.dtype), f"expected whole numbers 0 to {classes - 1}"
                )
        for column, most in enumerate(kind.categories, start=-len(kind.categories)):
            codes = self.inputs[:, column]
            if ((codes < 0) | (codes >= most) | (codes != codes.floor())).any():
                place = self.inputs.shape[1] + column
                raise InputError(f"{field}.inputs", f"column {place}", f"expected codes 0 to {most - 1}")
        return self
