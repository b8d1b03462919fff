"""A block's gradient in factors: of every linear layer the inputs a and the output gradients g, with dW = g^T a.

A dense derivative of the gradient holds (unknowns x parameters) values, and making it is nearly all that an attack on
a block costs. Both factors have a row a token, so their derivatives are small; norms, products with a given vector
and projections of the gradient follow from them (as per-example norms do in `privacy.book_keeping`). Parameters of
other modules are kept as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from ..blocks import Denoiser
from .block_problem import BlockProblem, LossOfOneDraw
from .problem import Values

State = Mapping[str, Tensor]
"""Other values of the block's trained parameters, by name; empty: those of the problem's model."""
_PAIRS_AT_ONCE = 512  # (draw, direction) pairs that go through the network at once; bounds the memory


class Factors(NamedTuple):
    """Of one layer: inputs and output gradients (..., R, in), (..., R, out) of its R calls and tokens."""

    inputs: Tensor
    outputs: Tensor


class Gradient(NamedTuple):
    """Of a batch (...): `linear` by module, `dense` (..., *shape) by parameter."""

    linear: dict[str, Factors]
    dense: dict[str, Tensor]


@dataclass
class _Tape:
    zeros: tuple[Tensor, ...]
    inputs: list[Tensor]


class FactoredGradient:
    """Gradients of a problem's single noise draws, by layer.

    factored = FactoredGradient(problem)
    found = factored.gradient(values)               # values of N draws: level (N,), noise (N, ...), fields (N, ...)
    slope = factored.derivative(point, flat, directions)
    """

    def __init__(self, problem: BlockProblem) -> None:
        self.problem = problem
        self.linear: dict[str, tuple[bool, bool]] = {}  # module -> (its weight is trained, its bias is)
        trained = set(problem.names)
        for name, module in problem.layers.named_modules():
            if isinstance(module, nn.Linear):
                parts = (f"{name}.weight" in trained, f"{name}.bias" in trained)
                if any(parts):
                    self.linear[name] = parts
        owned = {f"{name}.{part}" for name in self.linear for part in ("weight", "bias")}
        self.dense = [name for name in problem.names if name not in owned]
        self._exact = _Traced(problem, problem.model, list(self.linear), self.dense)
        self._fast: _Traced | None = None

    def gradient(self, values: Values, state: State | None = None) -> Gradient:
        """Of N draws, float64: factors (N, R, .)."""
        found: Gradient = vmap(lambda v: self._exact(v, state or {}))(values)
        return found

    def derivative(
        self,
        at: Callable[[Tensor], Values],
        flat: Tensor,
        directions: Tensor,
        state: State | None = None,
    ) -> tuple[Gradient, Gradient]:
        """The gradient at one draw's unknowns `flat` (n,), and its derivative along `directions` (m, n).

        In the precision of `flat`: float32 takes half the time, but an ill-conditioned problem needs float64.
        """
        traced = self._exact
        if flat.dtype == torch.float32:
            if self._fast is None:
                single = copy.deepcopy(self.problem.model).float()
                self._fast = _Traced(self.problem, single, list(self.linear), self.dense)
            traced = self._fast
        moved = {name: value.to(flat.dtype) for name, value in (state or {}).items()}

        def of(point: Tensor) -> Gradient:
            return traced(at(point), moved)

        def along(direction: Tensor) -> tuple[Gradient, Gradient]:
            there, tangent = jvp(of, (flat,), (direction,))[:2]
            return there, tangent

        dims: Any = (None, 0)  # torch's annotation knows no dimension that is not mapped
        parts = [vmap(along, out_dims=dims)(part) for part in directions.split(_PAIRS_AT_ONCE)]
        tangents = [tangent for _, tangent in parts]
        return parts[0][0], _stacked(tangents)


class _Traced:
    """The gradient of one draw's loss, in factors."""

    def __init__(self, problem: BlockProblem, model: Denoiser, linear: list[str], dense: list[str]) -> None:
        self.loss = LossOfOneDraw(model, problem)
        self.prefix = f"model.blocks.{problem.block}."
        self.linear, self.dense = linear, dense
        self.called: list[str] = []
        self._shapes: list[torch.Size] = []
        self._tape: _Tape | None = None
        block = model.blocks[problem.block]
        self._own = {name: p.detach() for name, p in block.named_parameters() if name in set(dense)}
        self._dtype = next(model.parameters()).dtype
        for name in linear:
            block.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            tape = self._tape
            if tape is None:
                return None
            tape.inputs.append(args[0])
            if len(tape.inputs) > len(
                tape.zeros
            ):  # the dry run, which learns how often which layer is called
                self.called.append(name)
                self._shapes.append(output.shape)
                return None
            return output + tape.zeros[len(tape.inputs) - 1]

        return hook

    def __call__(self, values: Values, state: State) -> Gradient:
        if not self._shapes:
            self._run((), {}, values, state)
        zeros = tuple(torch.zeros(shape, dtype=self._dtype) for shape in self._shapes)
        dense = {name: state.get(name, self._own[name]) for name in self.dense}

        def of(zeros: tuple[Tensor, ...], dense: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
            return self._run(zeros, dense, values, state)

        (outputs, slopes), inputs = grad(of, argnums=(0, 1), has_aux=True)(zeros, dense)
        linear = {}
        for name in self.linear:
            calls = [i for i, called in enumerate(self.called) if called == name]
            if calls:
                linear[name] = Factors(
                    torch.cat([inputs[i].reshape(-1, inputs[i].shape[-1]) for i in calls]),
                    torch.cat([outputs[i].reshape(-1, outputs[i].shape[-1]) for i in calls]),
                )
        return Gradient(linear, slopes)

    def _run(
        self, zeros: tuple[Tensor, ...], dense: State, values: Values, state: State
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._tape = tape = _Tape(zeros, [])
        try:
            changed = {self.prefix + name: value for name, value in {**state, **dense}.items()}
            loss: Tensor = functional_call(self.loss, changed, (values,))
        finally:
            self._tape = None
        return loss, tuple(tape.inputs)


def _stacked(parts: list[Gradient]) -> Gradient:
    """Batches one after another."""
    first = parts[0]
    return Gradient(
        {
            name: Factors(
                torch.cat([part.linear[name].inputs for part in parts]),
                torch.cat([part.linear[name].outputs for part in parts]),
            )
            for name in first.linear
        },
        {name: torch.cat([part.dense[name] for part in parts]) for name in first.dense},
    )
