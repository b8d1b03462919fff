"""Where LM-MAP starts: fields from the span or un-mixed, noise levels and draws from the modulation, then random.

A start that nothing is known of but the prior comes last: under noise a span misleads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
                self._searched(self._guess(known, known.fields, known.levels, known.noise), known, 0), whole
            )
        if self.release.noise and self.library is not None:
            k, vector = self.release.examples, self.release.vector
            for guess in (
                self.library.best(vector, attempts - 1)
                if k == 1
                else self.library.sums(vector, k, attempts - 1)
            ):
                yield Start(guess)
            return
        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            fields = {} if last else known.fields
            levels = self._median() if last and attempts > 1 else known.levels
            guess = self._guess(known, fields, levels, None)
            yield Start(self._searched(guess, None, int(attempt % 3 == 2)), ("draws", "all"))

    def _known(self) -> _Known:
        k, draws = self.release.examples, self.layout.draws
        count, vector = k * draws, self.release.vector
        fields: Values = {}
        levels, noise, labels = self._median(), None, None
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
        """With the most plausible values of the discrete fields, found one by one; `rank` 1: the second of a label.

        `known`: where the noisy embedding is, another label means another noise draw.
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
        if not cells:
            return guess
        observed = self.attack.observed
        weights = {
            n: 1 / (self.attack.noise**2 + (_ARTIFICIAL * s) ** 2) for n, s in self.attack.sizes.items()
        }
        seen = self.attack.model.summands(guess)
        for sweep in range(_SWEEPS if len(cells) > 1 else 1):
            for i, name, place in cells:
                options = [
                    self._put(guess, i, name, place, value, keep_z=known is not None)
                    for value in range(self._classes(name, place))
                ]
                batch = Guess(
                    torch.stack([o.flat[i] for o in options]),
                    {n: torch.stack([o.discrete[n][i] for o in options]) for n in guess.discrete},
                )
                rest = {
                    n: t - sum((s[n] for j, s in enumerate(seen) if j != i), torch.zeros(()))
                    for n, t in observed.items()
                }
                found = self.attack.model.summands(batch)
                costs = torch.tensor(
                    [sum(float((rest[n] - own[n]).square().sum()) * weights[n] for n in own) for own in found]
                )
                order = costs.argsort()
                second = rank and sweep == 0 and len(cells) == 1 and len(order) > 1
                best = int(order[1 if second else 0])
                guess, seen[i] = options[best], found[best]
        return guess

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
