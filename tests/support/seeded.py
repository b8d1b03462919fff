"""A company with a seed, in a process of its own: what no command of a real company does."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context, RecordDict


def seeded_company(run: Path, partition: int, companies: int) -> None:
    """Answer over the data plane as the simulated company of this partition, until the run is over."""
    from fedblocks.client.agent import Agent
    from fedblocks.client.app import app
    from fedblocks.client.company import simulated_home
    from fedblocks.client.endpoint import Endpoint

    torch.set_num_threads(1)
    node = {"partition-id": partition, "num-partitions": companies}
    context = Context(1, partition + 1, node, RecordDict(), {"run-dir": str(run)})
    home = simulated_home(run / "companies", partition)
    assert Agent(Endpoint.of(home), app, context).serve() == "done"
