"""The report's data on blocks: `diagnostics.json`, and the control experiments to compare it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...blocks import Metric
from ...blocks.diagnostics import BlockDiagnosis, NoiseBin
from ...server.run_folder import RunFolder
from .facts import Facts
from .measures import Measure

_SCORE = "score of single answers"


@dataclass(frozen=True)
class Diagnosed:
    """Diagnoses of all blocks after a round, and the controls, if they have been run.

    Controls are single networks trained end to end under the run's own conditions: `end_to_end` with all
    `layers`, `shallow` with those of one block. `chain` is the quality after each block to compare them with, on
    `judged` examples. `examples`: how many each block was asked about; none where the run did not say. `halves`: as
    in `Utility`.
    """

    round: int
    blocks: tuple[BlockDiagnosis, ...]
    chain: tuple[float, ...]
    end_to_end: float | None
    shallow: float | None
    layers: int
    measure: Measure
    examples: int | None = None
    judged: int = 0
    halves: tuple[float, ...] = ()

    @property
    def layers_each(self) -> int:
        return self.layers // len(self.blocks)

    @property
    def controlled(self) -> bool:
        return self.shallow is not None or self.end_to_end is not None

    @property
    def by_example(self) -> bool:
        """Whether measurements on single examples are in the family's metric."""
        return self.blocks[0].by_example

    @property
    def by_answer(self) -> Measure:
        """The measure of single examples."""
        m = self.measure.metric
        return self.measure if self.by_example else Measure(Metric(_SCORE, m.higher_is_better, "number"))

    @property
    def reads_inputs(self) -> bool:
        return any(block.inputs_shuffled is not None for block in self.blocks)

    def takes_away(self) -> list[int]:
        """Blocks after which the chain is worse than before them by more than chance."""
        q, m = self.chain, self.measure
        halves = self.halves or (None,) * (len(q) - 1)
        changes = [m.change_interval(q[b - 1], q[b], self.judged, halves[b - 1]) for b in range(1, len(q))]
        return [b for b, change in enumerate(changes, start=1) if m.worsens(change)]

    def controls(self) -> list[tuple[str, float]]:
        """(what, quality), the chain first."""
        n = len(self.blocks)
        named = [
            (f"the chain of {n} block{'s' if n > 1 else ''}", self.chain[-1]),
            ("its first block alone", self.chain[0] if n > 1 else None),
            (f"{_layers(self.layers_each)} end to end", self.shallow if n > 1 else None),
            (f"{_layers(self.layers)} end to end", self.end_to_end),
        ]
        return [(what, quality) for what, quality in named if quality is not None]

    def sentences(self) -> list[tuple[str, str, bool]]:
        """(topic, sentence, attention) for the findings."""
        found: list[tuple[str, str, bool]] = []
        m, n, show = self.measure, len(self.blocks), self.measure.show
        first, chain = self.chain[0], self.chain[-1]
        if n > 1 and not m.surely_worse(chain, first, self.judged):
            how = "better than" if m.surely_better(chain, first, self.judged) else "as well as"
            text = (
                f"The first block alone does {how} the whole chain of {n}: {show(first)} against "
                f"{show(chain)} ({m.words}, {m.direction}). What comes after it adds nothing here."
            )
            found.append(("First block", text, True))
        if n > 1 and self.shallow is not None:
            text = (
                f"One network of {_layers(self.layers_each)}, as many as a block has, trained end to end "
                f"reaches {show(self.shallow)}"
            )
            worse = m.surely_better(self.shallow, chain, self.judged)
            if worse:
                text += f": the chain does better, with {show(chain)}."
            else:
                how = "better than" if m.surely_better(chain, self.shallow, self.judged) else "as good as"
                text += (
                    f", {how} the chain with {show(chain)}: these data do not show that the chain is of use."
                )
            found.append(("Control", text, not worse))
        if self.end_to_end is not None:
            text = (
                f"All of the network, {_layers(self.layers)}, trained end to end reaches "
                f"{show(self.end_to_end)}; trained as blocks it reaches {show(chain)}, "
            )
            worse = m.surely_worse(self.end_to_end, chain, self.judged)
            text += f"{m.amount(self.end_to_end - chain)} worse." if worse else "no worse."
            found.append(("End to end", text, False))
        return found


def read_diagnosed(run: RunFolder, facts: Facts) -> Diagnosed | None:
    """None where the run has not been diagnosed."""
    raw = run.read_json("diagnostics.json")
    if raw is None:
        return None
    blocks = tuple(_block(block) for block in raw["heldout"])
    chain = tuple(block.in_chain for block in blocks)
    examples = raw.get("examples")
    judged: int = examples or 0
    halves: tuple[float, ...] = ()
    # Diagnoses may be computed on some of the held-out examples; controls and rounds are measured on all.
    if facts.utility is not None and facts.utility.last.round == raw["round"]:
        u = facts.utility
        chain, judged, halves = u.last.judged, u.judged_examples, u.halves
    return Diagnosed(
        round=raw["round"],
        blocks=blocks,
        chain=chain,
        end_to_end=raw["control"]["end_to_end"],
        shallow=raw["control"]["shallow"],
        layers=facts.plan.model.layers,
        measure=facts.measure,
        examples=examples,
        judged=judged,
        halves=halves,
    )


def _block(raw: dict[str, Any]) -> BlockDiagnosis:
    return BlockDiagnosis(**raw | {"by_noise": tuple(NoiseBin(**part) for part in raw["by_noise"])})


def _layers(n: int) -> str:
    return f"{n} layer{'s' if n > 1 else ''}"
