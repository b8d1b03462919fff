"""Where LM-MAP starts: fields from the span or un-mixed, noise levels and draws from the modulation, then random.

A start that nothing is known of but the prior comes last: under noise a span misleads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..blocks.categorical_denoiser import EmbeddedDenoiser
from ..blocks.denoiser import GaussianDenoiser
from ..blocks.taps import ContinuousTap
from . import linear_span, unmixing
from .library import Library
from .lm_map import LMMAP, Start
from .problem import Values
from .release_model import Moves
from .releases import Release
from .unknowns import Guess

_ARTIFICIAL = 0.3  # noise at which values of a discrete field are compared
_SWEEPS = 2
_ALL_AT_ONCE = 128  # combinations of an example's codes that are all tried
_Cell = tuple[int, str, tuple[int, ...]]
"""Example, field, place in the field."""


@dataclass(frozen=True)
class _Known:
    """What closed forms say: fields (K, *shape) as far as they are there, levels (K, draws), noise (K, draws, D) for
    label 0, labels (K,)."""

    fields: Values
    levels: Tensor
    noise: Tensor | None
    labels: Tensor | None


class Starts:
    """The starts of one attack.

    for start in Starts(attack, release, generator): ...
    """

    def __init__(
        self, attack: LMMAP, release: Release, generator: torch.Generator, library: Library | None = None
    ) -> None:
        self.library = library
        self.attack, self.layout, self.release = attack, attack.layout, release
        self.problem, self.generator = self.layout.problem, generator
        self.taps = {tap.field: tap for tap in self.problem.taps if isinstance(tap, ContinuousTap)}

    def __iter__(self) -> Iterator[Start]:
        known = self._known()
        attempts = self.attack.budget.attempts
        if known.noise is not None:
            whole: tuple[Moves, ...] = ("all",) if known.fields else ("example", "all")
            yield Start(
                self._searched(self._guess(known, known.fields, known.levels, known.noise), known, 0),
                whole,
                self._again,
            )
        if self.release.noise and self.library is not None:
            k, vector = self.release.examples, self.release.vector
            for guess in (
                self.library.best(vector, attempts - 1)
                if k == 1
                else self.library.sums(vector, k, attempts - 1)
            ):
                yield Start(guess, search=self._again)
            return
        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            fields = {} if last else known.fields
            levels = self._median() if last and attempts > 1 else known.levels
            guess = self._guess(known, fields, levels, None)
            yield Start(self._searched(guess, None, int(attempt % 3 == 2)), ("draws", "all"), self._again)

    def _known(self) -> _Known:
        k, draws = self.release.examples, self.layout.draws
        count, vector = k * draws, self.release.vector
        fields: Values = {}
        levels, noise, labels = self._median(), None, None
        if not vector.any():  # an example without a loss, as a row none of whose cells counts
            return _Known(fields, levels, noise, labels)
        model = self.problem.model
        noisy = next((tap for tap in self.taps.values() if tap.noisy_basis is not None), None)
        if noisy is not None and isinstance(model, EmbeddedDenoiser):
            found = unmixing.noisy_draws(self.problem, noisy, vector, count)
            if len(found.log_sigma) == count:
                levels = found.log_sigma.view(k, draws)
                zero = torch.zeros(count, dtype=torch.long)
                noise = unmixing.noise_of(self.problem, found.weights, found.log_sigma, zero).view(
                    k, draws, -1
                )
        elif isinstance(model, GaussianDenoiser) and "layers.0.modulation.weight" in self.problem.names:
            rows = self.problem.tensors(vector)["layers.0.modulation.weight"]
            found_levels, _ = unmixing.noise_levels(self.problem, rows, count)
            if len(found_levels) == count:
                levels = found_levels.view(k, draws)
        for name, tap in self.taps.items():
            prior = self.layout.priors[name]
            if k == 1:
                if linear_span.unsuited(tap, 1, draws) is None:
                    fields[name] = linear_span.solve(self.problem, tap, self.release, prior, draws).values[
                        None
                    ]
            elif draws == 1 and unmixing.unsuited(self.problem, tap, k) is None:
                solved = unmixing.unmix(self.problem, tap, self.release, prior, labels=True)
                if len(solved) == k:
                    fields[name] = torch.stack([each.solution.values for each in solved])
                    if all(each.label is not None for each in solved):
                        labels = torch.tensor([each.label for each in solved])
        return _Known(fields, levels, noise, labels)

    def _median(self) -> Tensor:
        partition, block = self.problem.model.partition, self.problem.block
        share = torch.arange(1, self.release.examples * self.layout.draws + 1, dtype=torch.float64)
        share = share / (len(share) + 1)
        return partition.levels(block, share).log().view(self.release.examples, -1)

    def _guess(self, known: _Known, fields: Values, levels: Tensor, noise: Tensor | None) -> Guess:
        """With the prior's mode for fields that are not known, random noise where none is, 0 for what is discrete.

        Noise 0 would be a saddle point: there the draws of one example are exchangeable.
        """
        k, layout = self.release.examples, self.layout
        values = {
            f.name: fields.get(f.name, layout.priors[f.name].mode.expand(k, *layout.priors[f.name].shape))
            for f in layout.fields
        }
        values |= {f.name: torch.zeros(k, *f.shape, dtype=torch.long) for f in layout.discrete}
        if noise is None:
            shape = (k, layout.draws, *layout.noise_shape)
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return layout.guess(values | {"level": levels, "noise": noise})

    def _searched(self, guess: Guess, known: _Known | None, rank: int) -> Guess:
        """With the most plausible values of the discrete fields; `rank` 1: those of the second most plausible label.

        `known`: where the noisy embedding is, another label means another noise draw. Of one example, every label is
        tried with the other fields' best values: a wrong one turns the gradient round, so nothing else fits then.
        """
        if known is not None and known.labels is not None:
            for i, label in enumerate(known.labels):
                guess = self._put(guess, i, "label", (), int(label), keep_z=True)
            return guess
        cells = [
            (i, field.name, place)
            for i in range(len(guess.flat))
            for field in self.layout.discrete
            for place in _places(field.shape)
        ]
        keep = known is not None
        if len(guess.flat) > 1 or (0, "label", ()) not in cells:
            return self._swept(guess, cells, keep)[0] if cells else guess
        rest = [cell for cell in cells if cell[1] != "label"]
        choices = [range(self._classes(name, place)) for _, name, place in rest]
        if math.prod(map(len, choices)) <= _ALL_AT_ONCE:
            return self._ranked(guess, rest, choices, keep, rank)
        found = [
            self._swept(self._put(guess, 0, "label", (), label, keep_z=keep), rest, keep)
            for label in range(self._classes("label", ()))
        ]
        found.sort(key=lambda each: each[1])
        return found[min(rank, len(found) - 1)][0]

    def _ranked(self, guess: Guess, cells: list[_Cell], choices: list[range], keep: bool, rank: int) -> Guess:
        """The best of all combinations with the most (`rank` 0) or second most plausible label."""
        best: list[tuple[float, Guess]] = []
        for label in range(self._classes("label", ())):
            options = []
            for values in product(*choices):
                option = self._put(guess, 0, "label", (), label, keep_z=keep)
                for (i, name, place), value in zip(cells, values, strict=True):
                    option = self._put(option, i, name, place, value, keep_z=keep)
                options.append(option)
            batch = Guess(
                torch.cat([o.flat for o in options]),
                {n: torch.cat([o.discrete[n] for o in options]) for n in guess.discrete},
            )
            costs = [self._cost(self.attack.observed, own) for own in self.attack.model.summands(batch)]
            first = min(range(len(costs)), key=costs.__getitem__)
            best.append((costs[first], options[first]))
        best.sort(key=lambda each: each[0])
        return best[min(rank, len(best) - 1)][1]

    def _swept(self, guess: Guess, cells: list[_Cell], keep: bool) -> tuple[Guess, float]:
        """With the best value of each cell in turn, and the cost of the whole."""
        seen = self.attack.model.summands(guess)
        cost = self._cost(self._without(seen, 0), seen[0])
        for _ in range(_SWEEPS if len(cells) > 1 else 1):
            for i, name, place in cells:
                options = [
                    self._put(guess, i, name, place, value, keep_z=keep)
                    for value in range(self._classes(name, place))
                ]
                batch = Guess(
                    torch.stack([o.flat[i] for o in options]),
                    {n: torch.stack([o.discrete[n][i] for o in options]) for n in guess.discrete},
                )
                found, rest = self.attack.model.summands(batch), self._without(seen, i)
                costs = [self._cost(rest, own) for own in found]
                best = min(range(len(costs)), key=costs.__getitem__)
                guess, seen[i], cost = options[best], found[best], costs[best]
        return guess, cost

    def _without(self, seen: list[dict[str, Tensor]], i: int) -> dict[str, Tensor]:
        """The release less what all examples but one are thought to add."""
        return {
            n: t - sum((s[n] for j, s in enumerate(seen) if j != i), torch.zeros(()))
            for n, t in self.attack.observed.items()
        }

    def _cost(self, rest: dict[str, Tensor], own: dict[str, Tensor]) -> float:
        """Of one example: the misfit under noise; without, the angle, as the size is far off while the rest is."""
        sizes, noise = self.attack.sizes, self.attack.noise
        weights = {n: 1 / (noise**2 + (_ARTIFICIAL * size) ** 2) for n, size in sizes.items()}
        if noise:
            return math.fsum(float((t - own[n]).square().sum()) * weights[n] for n, t in rest.items())
        along = math.fsum(float((t * own[n]).sum()) * weights[n] for n, t in rest.items())
        length = math.fsum(float(t.square().sum()) * weights[n] for n, t in own.items())
        return -along / math.sqrt(max(length, 1e-300))

    def _again(self, guess: Guess) -> Guess:
        return self._searched(guess, None, 0)

    def _classes(self, name: str, place: tuple[int, ...]) -> int:
        if name == "codes":
            return int(self.problem.settings.categories[place[0]])  # type: ignore[attr-defined]
        return int(self.problem.by_name[name].classes or 0)

    def _put(
        self, guess: Guess, i: int, name: str, place: tuple[int, ...], value: int, *, keep_z: bool
    ) -> Guess:
        """Example i with another value of a discrete field; `keep_z`: the noise changes so that z does not."""
        field = guess.discrete[name].clone()
        before = int(field[(i, *place)])
        field[(i, *place)] = value
        flat, model = guess.flat, self.problem.model
        if keep_z and name == "label" and before != value and isinstance(model, EmbeddedDenoiser):
            shift = model.table[before] - model.table[value]
            shift = shift if self.layout.basis is None else self.layout.basis @ shift
            flat = flat.clone()
            own = flat[i, self.layout.example :].view(self.layout.draws, self.layout.draw)
            own[:, :-1] += shift / own[:, -1:].exp()
        return Guess(flat, guess.discrete | {name: field})


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if not shape:
        return [()]
    return [tuple(int(x) for x in p) for p in torch.ones(shape).nonzero()]
