"""Server optimisers: apply the companies' mean update to a block (Reddi et al. 2021, FedOpt, algorithm 2).

The mean update is the negative of a pseudo-gradient, which PyTorch's optimisers then apply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RunError
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
        """Go on from what `state` returned, or from nothing. Raises: RunError for anything else, which would fail, or
        ruin the block, once companies have been charged."""
        names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(self._optimizer, torch.optim.Adam) else set()
        if state and (
            state.keys() != names
            or any(v.shape != (() if name == "step" else self._vector.shape) for name, v in state.items())
            or not all(v.dtype == torch.float32 and v.isfinite().all() for v in state.values())
        ):
            raise RunError("the checkpoint's optimiser state is not of this optimiser and block")
        self._optimizer.state.pop(self._vector, None)
        if state:
            self._optimizer.state[self._vector] = {name: value.clone() for name, value in state.items()}
