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


@dataclass(frozen=True)
class Examples:
    """inputs (N, ...) and targets (N, ...): float32 where real, int64 where they name classes or tokens."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: npt.NDArray[np.int64] | Tensor | slice) -> Examples:
        return Examples(self.inputs[index], self.targets[index])

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all values, 32 bytes."""
        return digest({"inputs": self.inputs, "targets": self.targets})

    def to(self, device: torch.device | str) -> Examples:
        return Examples(self.inputs.to(device), self.targets.to(device))

    def save(self, path: Path) -> None:
        """A file that its owner alone may read."""
        with atomic_file.replacing(path, mode=atomic_file.OWNER_ONLY) as draft, draft.open("wb") as file:
            np.savez_compressed(file, inputs=self.inputs.numpy(), targets=self.targets.numpy())

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read back what `save` wrote. Raises: DamagedFile where the file is damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(torch.from_numpy(file["inputs"]), torch.from_numpy(file["targets"]))
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
        for name, values, shape, classes in (
            ("inputs", self.inputs, kind.inputs, kind.input_classes),
            ("targets", self.targets, kind.targets, kind.target_classes),
        ):
            if tuple(values.shape[1:]) != shape:
                raise InputError(f"{field}.{name}", tuple(values.shape[1:]), f"expected {shape} an example")
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
