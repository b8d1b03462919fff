"""The end of a simulation whose plan gives companies parts of their own: each trains them and is judged with them."""

from __future__ import annotations

from typing import Any

from ...blocks.examples import Examples
from ...blocks.model_file import model_of
from ...blocks.pretrained.settings import PretrainedSettings
from ...client.personal import PERSONAL_FILE, personalise
from ...server.models import card_of
from ...server.run_folder import RunFolder


def personalised(run: RunFolder) -> dict[str, Any]:
    """By company, the family's metric on its own held-out examples, of the common model and with its own parts.

    They are written to each simulated home. Nothing where the plan gives companies none.
    """
    settings = run.plan().model
    if not isinstance(settings, PretrainedSettings) or settings.personal == "nothing":
        return {}
    checkpoint, card = card_of(run)
    model = model_of(checkpoint.model, card)
    found = {}
    for home in run.homes():
        data = Examples.load(home / "data.npz")
        own = run.own_heldout / f"{home.name}.npz"
        held_out = Examples.load(own) if own.is_file() else None
        found[home.name] = vars(personalise(model, card, data, held_out, home / PERSONAL_FILE))
    return {"personal": {"part": settings.personal, "metric": card.metric, "companies": found}}
