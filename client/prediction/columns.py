"""Predictions as columns of equal length, and the plain values that files and people get of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """`kind`: what they are ("classes", "numbers", "forecast", "continuations", "scores" or "images").

    `columns`: by name, (N, ...) each, the first of them naming the example. `parts`: what the entries of a column
    along its second axis are called.
    """

    kind: str
    columns: dict[str, Column]
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def flat(self) -> dict[str, Column]:
        """Columns of one value a row: those with more become one for each entry, NAME_PART."""
        found: dict[str, Column] = {}
        for name, values in self.columns.items():
            if values.ndim == 1:
                found[name] = values
                continue
            rows = values.reshape(len(values), -1)
            names = self.parts.get(name) or tuple(map(str, range(rows.shape[1])))
            found |= {f"{name}_{part}": rows[:, i] for i, part in enumerate(names)}
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """A row as JSON has it; a column with named parts becomes an object."""
        for i in range(len(self)):
            yield {name: self._plain(name, values[i]) for name, values in self.columns.items()}

    def _plain(self, name: str, value: Any) -> Any:
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        return dict(zip(self.parts[name], plain, strict=True)) if name in self.parts else plain
