"""The reconstruction problem of a block of any family: its gradient as a function of the example and its noise draws.

A company computes the gradient of the block's loss, averaged over `draws` noise draws. The attacker knows the model
and the objective, so it can compute this map and its derivative. Values are float64; derivatives are float32, because
an inexact Jacobian makes an iteration slower but does not change its fixed point.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..blocks import BlockObjective, Denoiser, Draw, Seeded, block_parameters
from ..blocks.denoiser import GaussianDenoiser
from ..blocks.examples import Examples
from ..blocks.masked import MaskedDenoiser
from ..blocks.settings import TransformerSettings
from ..blocks.taps import Field
from .level_curve import LevelCurve
from .problem import Problem, Values

# Forward mode takes this many (draw, direction) pairs through the network at once; bounds the memory.
_PAIRS_AT_ONCE = 1024
_GRADIENTS_AT_ONCE = 64
Along = Callable[[Tensor], Tensor]


def example_fields(settings: TransformerSettings) -> tuple[Field, ...]:
    """What an example of these settings consists of: one field for the text of a language model, which is input and
    target at once; a row's numbers and codes apart."""
    kind = settings.kind
    label = Field(name="label", what="label", shape=(), classes=kind.target_classes, side="targets")
    if settings.connector == "labelled-text":
        return (
            Field(name="tokens", what="tokens", shape=kind.inputs, classes=kind.input_classes, side="inputs"),
            label,
        )
    if settings.connector == "text":
        return (
            Field(name="tokens", what="tokens", shape=kind.inputs, classes=kind.input_classes, side="both"),
        )
    if settings.connector == "series":
        return (
            Field(name="past", what="series", shape=kind.inputs, side="inputs"),
            Field(name="future", what="series", shape=kind.targets, side="targets"),
        )
    if settings.connector == "tables":
        numeric = kind.inputs[0] - len(kind.categories)
        found = []
        if numeric:
            found.append(
                Field(name="numbers", what="numbers", shape=(numeric,), bounds=(-1.0, 1.0), side="inputs")
            )
        if kind.categories:
            found.append(
                Field(
                    name="codes", what="codes", shape=(len(kind.categories),), classes=max(kind.categories),
                    side="inputs",
                )
            )  # fmt: skip
        if kind.target_classes is None:
            found.append(Field(name="number", what="number", shape=(), bounds=(-1.0, 1.0), side="targets"))
        else:
            found.append(label)
        return tuple(found)
    image_is_input = kind.input_classes is None
    image = kind.inputs if image_is_input else kind.targets
    classes = kind.target_classes if image_is_input else kind.input_classes
    return (
        Field(
            name="image", what="image", shape=image, bounds=(0.0, 1.0),
            side="inputs" if image_is_input else "targets",
        ),
        Field(
            name="label", what="label", shape=(), classes=classes, side="targets" if image_is_input else "inputs"
        ),
    )  # fmt: skip


class BlockProblem(Problem):
    """Gradients of block `block`, in the order in which its updates are flattened.

    problem = BlockProblem(model, 0, BlockObjective(), settings.model, draws=2)
    values = problem.sample(problem.values_of(examples), generator)    # with noise draws as training draws them
    g = problem.gradient(values)                                       # (K, P) float64

    `interface`: whether the run trains that as well. Nuisance fields: `level` (log sigma, or the masking rate) and
    `noise` (shaped as the clean target; uniform on [0, 1) where tokens are masked).
    """

    def __init__(
        self,
        model: Denoiser,
        block: int,
        objective: BlockObjective,
        settings: TransformerSettings,
        *,
        draws: int = 1,
        interface: bool = False,
    ) -> None:
        self.block, self.objective, self.settings, self.draws = block, objective, settings, draws
        # A copy: the caller's model keeps its mode, dtype and flags.
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.layers = self.model.freeze_all_but(block, interface=interface)
        named = block_parameters(self.layers)
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.model.requires_grad_(False)
        self.masked = isinstance(model, MaskedDenoiser)
        self.taps = self.model.taps(block)
        noise_shape = self._noise_shape()
        self.fields = (
            *example_fields(settings),
            Field(name="level", what="level", shape=(), bounds=self._interval(), nuisance=True),
            Field(
                name="noise", what="mask" if self.masked else "noise", shape=noise_shape,
                bounds=(0.0, 1.0) if self.masked else None, nuisance=True,
            ),
        )  # fmt: skip
        self.by_name = {field.name: field for field in self.fields}
        self.of_example = tuple(field.name for field in self.fields if not field.nuisance)
        self._exact = self._of_one_draw(self.model)
        self._in_float32: Callable[[Values], Tensor] | None = None

    @cached_property
    def level_curve(self) -> LevelCurve:
        """What modulates the block, by log sigma."""
        model = self.model
        assert isinstance(model, GaussianDenoiser)
        return LevelCurve(lambda log_sigma: model.condition(self.block, log_sigma.exp()), self._interval())

    def values_of(self, examples: Examples) -> Values:
        """Examples by field, without nuisance: real ones float64."""
        found: Values = {}
        for field in self.fields:
            if field.nuisance:
                continue
            side = examples.targets if field.side == "targets" else examples.inputs
            if field.name == "numbers":
                side = side[:, : field.shape[0]]
            elif field.name == "codes":
                side = side[:, -field.shape[0] :]
            found[field.name] = side.cpu().double() if field.continuous else side.cpu().long()
        return found

    def sides(self, values: Values) -> tuple[Tensor, Tensor]:
        """(inputs, targets) as the model reads them, of values with any leading dimensions."""
        for field in self.fields:
            if field.side == "both":
                return values[field.name], values[field.name]
        parts = [
            values[name].to(self._dtype(values)) for name in ("numbers", "codes") if name in self.by_name
        ]
        inputs = torch.cat(parts, dim=-1) if parts else None
        targets = None
        for field in self.fields:
            if field.side == "inputs" and inputs is None:
                inputs = values[field.name]
            if field.side == "targets":
                targets = values[field.name]
        assert inputs is not None
        assert targets is not None
        return inputs, targets

    @staticmethod
    def _dtype(values: Values) -> torch.dtype:
        return values["level"].dtype

    def sample(self, values: Values, generator: torch.Generator) -> Values:
        """The values with their nuisance drawn as training draws it."""
        _, targets = self.sides(values | {"level": torch.zeros((), dtype=torch.float64)})
        draw = self.model.draw(self.block, targets.repeat_interleave(self.draws, 0), Seeded(generator))
        level = draw.level.double() if self.masked else draw.level.double().log()
        k = len(targets)
        return values | {
            "level": level.view(k, self.draws),
            "noise": draw.noise.double().view(k, self.draws, *draw.noise.shape[1:]),
        }

    @property
    def _fast(self) -> Callable[[Values], Tensor]:
        """The gradient of one draw in float32; made when it is first asked for."""
        if self._in_float32 is None:
            self._in_float32 = self._of_one_draw(copy.deepcopy(self.model).float())
        return self._in_float32

    def gradient(self, values: Values, *, fast: bool = False, of: str | None = None) -> Tensor:
        """Gradients (K, P) of K examples, each averaged over its draws; `fast`: in float32, as companies do; `of`:
        in one of the parameters alone, which costs less."""
        k, d = values["level"].shape
        of_one = self._fast if fast else self._exact if of is None else self._of_one_draw(self.model, of)
        if fast:
            values = {name: v.float() if v.is_floating_point() else v for name, v in values.items()}
        flat = {
            field.name: values[field.name].flatten(0, 1)
            if field.nuisance
            else values[field.name].repeat_interleave(d, 0)
            for field in self.fields
        }
        parts = [
            vmap(of_one)({name: value[i : i + _GRADIENTS_AT_ONCE] for name, value in flat.items()})
            for i in range(0, k * d, _GRADIENTS_AT_ONCE)
        ]
        found = torch.cat(parts) if len(parts) > 1 else parts[0]  # large: not copied where it need not be
        return found.view(k, d, -1).mean(1) if d > 1 else found

    def jacobian(self, values: Values, names: tuple[str, ...]) -> Tensor:
        """d gradient / d the named continuous unknowns, flat in their order: (K, n, P) float32.

        A draw's gradient depends on the example and on its own noise only, so the derivative is taken draw by draw.
        """
        fast = self._fast
        k, d = values["level"].shape
        chosen = [self.by_name[name] for name in names]
        sizes = [torch.Size(field.shape).numel() for field in chosen]
        rows: list[Tensor] = []
        for i in range(k):
            blocks: list[list[Tensor]] = [[] for _ in names]
            for j in range(d):
                point = {
                    field.name: (values[field.name][i, j] if field.nuisance else values[field.name][i])
                    for field in self.fields
                }
                point = {name: v.float() if v.is_floating_point() else v for name, v in point.items()}
                whole = torch.cat([point[name].reshape(-1) for name in names])

                def at(moved: Tensor, point: Values = point) -> Tensor:
                    cut = zip(chosen, moved.split(sizes), strict=True)
                    return fast(point | {field.name: part.view(field.shape) for field, part in cut})

                def along(direction: Tensor, at: Along = at, whole: Tensor = whole) -> Tensor:
                    tangent: Tensor = jvp(at, (whole,), (direction,))[1]
                    return tangent

                directions = torch.eye(len(whole)).split(_PAIRS_AT_ONCE)
                found = torch.cat([vmap(along)(part) for part in directions]) / d  # (n, P)
                for block, part in zip(blocks, found.split(sizes), strict=True):
                    block.append(part)
            rows.append(
                torch.cat(
                    [
                        torch.cat(parts) if field.nuisance else torch.stack(parts).sum(0)
                        for field, parts in zip(chosen, blocks, strict=True)
                    ]
                )
            )
        return torch.stack(rows)

    def _of_one_draw(self, model: Denoiser, of: str | None = None) -> Callable[[Values], Tensor]:
        loss = LossOfOneDraw(model, self)
        prefix = f"model.blocks.{self.block}."
        names = self.names if of is None else [of]
        parameters: dict[str, Tensor] = {
            prefix + n: p.detach() for n, p in model.blocks[self.block].named_parameters() if n in set(names)
        }
        ordered = [prefix + n for n in names]

        def gradient(values: Values) -> Tensor:
            def of(p: dict[str, Tensor]) -> Tensor:
                found: Tensor = functional_call(loss, p, (values,))
                return found

            g = grad(of)(parameters)
            return torch.cat([g[n].reshape(-1) for n in ordered])  # (P,)

        return gradient

    def _noise_shape(self) -> tuple[int, ...]:
        kind = self.settings.kind
        dtype = torch.float64 if kind.target_classes is None else torch.long
        clean = self.model.clean(torch.zeros(1, *kind.targets, dtype=dtype))
        return tuple(clean.shape[1:])

    def _interval(self) -> tuple[float, float]:
        low, high = torch.tensor(self.model.partition.training_interval(self.block), dtype=torch.float64)
        return (float(low), float(high)) if self.masked else (float(low.log()), float(high.log()))


class LossOfOneDraw(nn.Module):
    """The loss as a module, so that `functional_call` can swap the block's parameters."""

    def __init__(self, model: Denoiser, problem: BlockProblem) -> None:
        super().__init__()
        self.model, self.problem = model, [problem]  # in a list, so that it is no submodule's concern

    def forward(self, values: Values) -> Tensor:
        (problem,) = self.problem
        inputs, targets = problem.sides(values)
        level = values["level"] if problem.masked else values["level"].exp()
        draw = Draw(level[None], values["noise"][None])
        prefix = self.model.features == "prefix" and problem.block > 0
        # Fused attention has no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH):
            # Features of the blocks before this one as a function of the input; `context` alone would cut it.
            before = self.model.features_before(problem.block, inputs[None]) if prefix else None
            context = self.model.context(problem.block, inputs[None], before)
            return problem.objective.at(self.model, problem.block, context, targets[None], draw)[0]
