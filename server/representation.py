"""representation.json of a run of a pretrained model: what it could do before its first round, and what it can now.

Measured when the run ends, on at most 500 of the coordinator's public examples that no training has seen. Public data
and two models that are released anyway: no privacy is spent on it, and nothing of it is told by a company.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

from pydantic import ValidationError

from .. import atomic_file
from ..blocks import Denoiser, merge
from ..blocks.examples import Examples
from ..blocks.pretrained.denoiser import PretrainedDenoiser
from ..blocks.pretrained.representation import compare, observe
from ..blocks.settings import Part
from ..blocks.size import parameters_of
from ..errors import RunError
from ..settings import Plan
from .checkpoint import Checkpoint
from .guard import Guard, spread_evenly
from .run_folder import RunFolder

log = logging.getLogger("fedblocks.run")

FILE = "representation.json"
_MOST, _LEAST = 500, 32  # examples
_AFFORDED = 2e12  # parameters times tokens that go through the model


class State(Part):
    """Of one model; `probe`: accuracy of a linear probe of the last block, none where nothing can be told apart."""

    public_loss: float | None
    probe: float | None
    accuracy: float
    rare_accuracy: float


class Representation(Part):
    """`count`: how many answers were looked at, of so many `examples`; see `blocks.pretrained.representation`."""

    round: int
    examples: int
    count: int
    before: State
    after: State
    cka: tuple[float, ...]
    forgotten: float
    learnt: float
    rare: tuple[int, ...]
    rare_count: int

    @classmethod
    def read(cls, run: RunFolder) -> Representation | None:
        """None where there is none. Raises: RunError where the file is damaged."""
        path = run.path / FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise RunError(f"{path}: not what the end of a run writes; remove it") from None


def measure(
    run: RunFolder, plan: Plan, model: Denoiser, last: Checkpoint, public: Examples, guard: Guard, seed: int
) -> None:
    """Write the file; `model` is in the state of `last`, and again afterwards. Of other families there is none."""
    if not isinstance(model, PretrainedDenoiser) or last.round == 0:
        return
    try:
        first = Checkpoint.load(run.checkpoints, 0)
    except RunError as error:
        log.warning("%s is not written: %s", FILE, error)
        return
    examples = spread_evenly(public, _afforded(plan))
    seen, losses = [], []
    for state in (last.model, first.model):
        merge(model, state.shared, *state.blocks)
        seen.append(observe(model, examples, seed))
        losses.append(guard.finite_loss(model))
    merge(model, last.model.shared, *last.model.blocks)
    found = compare(seen[1], seen[0])
    made = Representation(
        round=last.round,
        examples=len(examples),
        count=found.count,
        before=State(public_loss=losses[1], **asdict(found.before)),
        after=State(public_loss=losses[0], **asdict(found.after)),
        cka=found.cka,
        forgotten=found.forgotten,
        learnt=found.learnt,
        rare=found.rare,
        rare_count=found.rare_count,
    )
    atomic_file.write(run.path / FILE, made.model_dump_json(indent=2).encode())


def _afforded(plan: Plan) -> int:
    """Fewer examples of a large model: on a processor they would take an hour."""
    kind = plan.model.kind
    tokens = kind.inputs[0] if kind.input_classes is not None else 200
    return int(min(_MOST, max(_LEAST, _AFFORDED // (parameters_of(plan.model) * tokens))))
