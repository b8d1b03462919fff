"""The cases: which neighbours each attack is tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ....blocks.families import family_names
from ....privacy.clipping import Clipping
from .arrangements import ARRANGEMENTS, ORDERS
from .families import SCALES, family_examples
from .last_bit import READERS, last_bit
from .neighbours import PLACES, movement
from .sums import LAYERS, handing

CLIPPINGS: tuple[Clipping, ...] = ("flat", "per-layer", "automatic")
# At once: more than there are. A pass is filled up to its size, so it is no larger than it has to be.
_ALL, _ALL_SUMS = 2048, 1 << 16

Pairs = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Case:
    """One attack on one layer or model: `pairs` gives each neighbouring pair's label and movement."""

    attack: str
    name: str
    pairs: Callable[[], Pairs]
    cost: float  # roughly, in seconds


def all_cases(full: bool) -> list[Case]:
    return [*sum_cases(full), *last_bit_cases(full), *family_cases(full)]


def sum_cases(full: bool) -> list[Case]:
    sizes = (1, 2, 100, 1_000, 36_385, 50_000) if full else (1, 2, 1_000, 36_385)
    at_once = (32, 128, 4_096, _ALL_SUMS) if full else (128, _ALL_SUMS)

    def pairs(layer: str) -> Pairs:
        for n in sizes:
            for arrangement, table_of in ARRANGEMENTS.items():
                table = table_of(n)
                examples = handing(layer, table)
                for order, order_of in ORDERS.items() if full or n < 2_000 else _few(ORDERS):
                    for place, at in PLACES.items():
                        for rows in at_once:
                            label = f"{arrangement}, {order}, {place} of {n}, {_rows(rows)}"
                            yield label, movement(examples, order_of(table), at(n), at_once=rows)

    return [Case("sum", layer, lambda layer=layer: pairs(layer), 20.0) for layer in LAYERS]  # type: ignore[misc]


def last_bit_cases(full: bool) -> list[Case]:
    sizes = (2, 3, 4, 5, 6, 8, 9, 11, 17, 33, 41, 65, 129, 257, 1_001) if full else (2, 4, 5, 11, 65, 129)
    at_once = (32, 64, 128, _ALL) if full else (32, 64, _ALL)

    def pairs(reader: str) -> Pairs:
        torch.manual_seed(0)
        model = READERS[reader]()
        for n in sizes:
            for place, at in PLACES.items():
                for rows in at_once:
                    for clipping in CLIPPINGS if full else CLIPPINGS[:1]:
                        label = f"{place} of {n}, {_rows(rows)}, {clipping}"
                        yield label, last_bit(model, n, at(n), at_once=rows, clipping=clipping)

    return [Case("last bit", reader, lambda reader=reader: pairs(reader), 3.0) for reader in READERS]  # type: ignore[misc]


def family_cases(full: bool) -> list[Case]:
    sizes = (1, 2, 4, 5, 11, 65, 129, 1_000) if full else (2, 5, 65)
    at_once = (32, 64, _ALL) if full else (32,)

    def pairs(family: str, clipping: Clipping, half: bool) -> Pairs:
        for scale in SCALES:
            for draws in (1, 3):
                examples = family_examples(
                    family, sizes[-1], scale=scale, draws=draws, interface=draws == 3, half=half
                )
                for n in sizes:
                    for place, at in PLACES.items():
                        for rows in at_once:
                            label = f"weights times {scale:g}, {place} of {n}, {draws} draws, {_rows(rows)}"
                            found = movement(
                                examples, torch.arange(n), at(n), at_once=rows, clipping=clipping
                            )
                            yield label, found

    ways = [(clipping, False) for clipping in CLIPPINGS] + [(CLIPPINGS[0], True)]
    return [
        Case(
            "family",
            f"{family}, {clipping}{', bfloat16' if half else ''}",
            lambda f=family, c=clipping, h=half: pairs(f, c, h),  # type: ignore[misc]
            4.0,
        )
        for family in family_names()
        for clipping, half in ways
    ]


def _few(
    orders: dict[str, Callable[[torch.Tensor], torch.Tensor]],
) -> list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    return list(orders.items())[:2]


def _rows(at_once: int) -> str:
    return "all at once" if at_once in (_ALL, _ALL_SUMS) else f"{at_once} at once"
