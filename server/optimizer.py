"""Server optimisers: apply the companies' mean update to a block (Reddi et al. 2021, FedOpt, algorithm 2).

The mean update is the negative of a pseudo-gradient, which PyTorch's optimisers then apply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..settings import TrainingSettings


class BlockOptimizer:
    """Optimiser state of one block; `fedavg` is plain SGD on the pseudo-gradient, `fedadam` is Adam."""

    def __init__(self, settings: TrainingSettings, size: int) -> None:
        self._vector = torch.zeros(size, requires_grad=True)
        lr = settings.server_learning_rate
        self._optimizer: torch.optim.Optimizer
        if settings.server_optimizer == "fedadam":
            self._optimizer = torch.optim.Adam([self._vector], lr=lr, betas=settings.server_betas, eps=1e-8)
        else:
            self._optimizer = torch.optim.SGD([self._vector], lr=lr)

    def step(self, block: Tensor, mean_update: Tensor) -> Tensor:
        """The block's new values (P,) from its old ones and the cohort's mean update (P,)."""
        with torch.no_grad():
            self._vector.copy_(block)
        self._vector.grad = -mean_update.to(self._vector.dtype)
        self._optimizer.step()
        return self._vector.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """The optimiser's state, as flat tensors; after `load` it continues with the same bits."""
        held = self._optimizer.state.get(self._vector, {})
        return {name: torch.as_tensor(value).clone() for name, value in held.items() if value is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        self._optimizer.state.pop(self._vector, None)
        if state:
            self._optimizer.state[self._vector] = {name: value.clone() for name, value in state.items()}
