"""Examples that no company trained on: the others, beside which members are told."""

from __future__ import annotations

from ...blocks.examples import Examples
from ...errors import FedblocksError
from ..subject import Subject

LEAST = 20


def unsuited(subject: Subject) -> str | None:
    """Why nothing can be told of this run's members by its held-out examples; none where it can."""
    if subject.checkpoint.round == 0:
        return "nothing was trained on private data yet"
    if subject.plan.model.label_side is None:
        return (
            "what is held out comes after what companies hold, so that a test would tell times, not members"
        )
    try:
        found = heldout(subject)
    except (FedblocksError, OSError) as error:
        return f"it needs examples that no company trained on: {error}"
    members = sum(map(len, subject.private.values()))
    if members < LEAST:
        return f"the companies hold {members} examples together, of at least {LEAST}"
    return None if len(found) >= LEAST else f"only {len(found)} examples were held out, of at least {LEAST}"


def heldout(subject: Subject) -> Examples:
    """What the simulation held out of the companies' data. Raises: RunError, OSError."""
    return Examples.load(subject.run.evaluation / "heldout.npz")
