"""What the report says about the blocks: `diagnostics.json`, and the controls that put it in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...blocks.diagnostics import BlockDiagnosis, NoiseBin
from ...config import ModelSettings
from ...server.run_folder import RunFolder
from .measures import Measure


@dataclass(frozen=True)
class Diagnosed:
    """Held-out diagnoses of all blocks after a round; the controls are ordinary networks, where trained.

    `end_to_end` has all `layers`, `shallow` only the layers of one block.
    """

    round: int
    blocks: tuple[BlockDiagnosis, ...]
    end_to_end: float | None
    shallow: float | None
    layers: int
    measure: Measure

    @property
    def chain(self) -> float:
        return self.blocks[-1].in_chain

    @property
    def layers_each(self) -> int:
        return self.layers // len(self.blocks)

    @property
    def reads_inputs(self) -> bool:
        return any(block.inputs_shuffled is not None for block in self.blocks)

    def takes_away(self) -> list[int]:
        """Blocks after which the chain is noticeably worse than before them."""
        q = [block.in_chain for block in self.blocks]
        return [b for b in range(1, len(q)) if self.measure.noticeably_worse(q[b - 1], q[b])]

    def controls(self) -> list[tuple[str, float]]:
        """(what, quality), the chain first."""
        n = len(self.blocks)
        named = [
            (f"the chain of {n} block{'s' if n > 1 else ''}", self.chain),
            ("its first block alone", self.blocks[0].in_chain if n > 1 else None),
            (f"{_layers(self.layers_each)} end to end", self.shallow if n > 1 else None),
            (f"{_layers(self.layers)} end to end", self.end_to_end),
        ]
        return [(what, quality) for what, quality in named if quality is not None]

    def sentences(self) -> list[tuple[str, str, bool]]:
        """(topic, sentence, attention) for the findings."""
        found: list[tuple[str, str, bool]] = []
        m, n, show = self.measure, len(self.blocks), self.measure.show
        first = self.blocks[0].in_chain
        if n > 1 and not m.noticeably_worse(self.chain, first):
            how = "better than" if m.noticeably_better(self.chain, first) else "as well as"
            text = (
                f"The first block alone does {how} the whole chain of {n}: {show(first)} against "
                f"{show(self.chain)} ({m.words}, {m.direction}). What comes after it adds nothing here."
            )
            found.append(("First block", text, True))
        if n > 1 and self.shallow is not None:
            reached = f"{_layers(self.layers_each)}, as many as one block has, trained end to end, reach"
            if m.noticeably_worse(self.chain, self.shallow):
                text = f"{reached} {show(self.shallow)}: the chain does better, with {show(self.chain)}."
                found.append(("Control", _upper(text), False))
            else:
                better = m.noticeably_better(self.chain, self.shallow)
                text = (
                    f"{reached} {show(self.shallow)}, {'better than' if better else 'as good as'} the chain "
                    f"with {show(self.chain)}: these data do not show that the chain is of use."
                )
                found.append(("Control", _upper(text), True))
        if self.end_to_end is not None:
            worse = m.noticeably_worse(self.end_to_end, self.chain)
            text = (
                f"All {_layers(self.layers)} trained end to end reach {show(self.end_to_end)}; trained as "
                f"blocks they reach {show(self.chain)}"
                + (f", {m.amount(self.end_to_end - self.chain)} worse." if worse else ", no worse.")
            )
            found.append(("End to end", text, False))
        return found


def read_diagnosed(run: RunFolder, model: ModelSettings, measure: Measure) -> Diagnosed | None:
    """None where the run has not been diagnosed."""
    raw = run.read_json("diagnostics.json")
    if raw is None:
        return None
    return Diagnosed(
        round=raw["round"],
        blocks=tuple(_block(block) for block in raw["heldout"]),
        end_to_end=raw["control"]["end_to_end"],
        shallow=raw["control"]["shallow"],
        layers=model.layers,
        measure=measure,
    )


def _block(raw: dict[str, Any]) -> BlockDiagnosis:
    return BlockDiagnosis(**raw | {"by_noise": tuple(NoiseBin(**part) for part in raw["by_noise"])})


def _layers(n: int) -> str:
    return f"{n} layer{'s' if n > 1 else ''}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
