"""The nodes of a simulated run: what each company's app is told of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from flwr.app import Context, RecordDict

from ....client.company import simulated_home
from ....server.run_folder import RunFolder
from ....settings import read_simulation


@dataclass(frozen=True)
class Nodes:
    """Numbered from 1, in the order of partitions; `folder` is the run's."""

    folder: str
    names: Mapping[int, str]

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        count = read_simulation(run.path).companies.count
        names = {i + 1: simulated_home(run.companies, i).name for i in range(count)}
        return cls(str(run.path), names)

    @property
    def run_config(self) -> dict[str, str | int | float | bool]:
        return {"run-dir": self.folder}

    def context(self, node: int) -> Context:
        """A fresh one, as Flower would give it to the app."""
        return Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": node - 1, "num-partitions": len(self.names)},
            state=RecordDict(),
            run_config=self.run_config,
        )
