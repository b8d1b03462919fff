"""The models that came to a company, and what they are worth on its own held-out examples.

HOME/models/RUN/metrics.json: the family's metric of the final model and of the public one that the run began with.
These figures are of private data and never leave: no message carries them, and they are not computed while a message
is answered, since that would take a time that depends on the examples.

    python -P -m fedblocks.client.models HOME     # as the agent does it, in a process of its own
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..blocks import Denoiser, merge, metric_of
from ..blocks.examples import Examples
from ..blocks.model_file import ModelCard, load_model
from ..blocks.state import read_part
from ..errors import FedblocksError, InputError
from ..protocol import private_file
from .company import Company
from .model_folders import METRICS_FILE, PUBLIC_FILE, kept_folders
from .personal import PERSONAL_FILE, laid_over, mark_of
from .quality import quality_of, spread


@dataclass(frozen=True)
class KeptModel:
    """A model in the home. `problem`: why it, or the held-out examples, cannot be read.

    `public` and `final`: the family's `metric` on `examples` held-out examples; none where there are none.
    `personal`: the same of the final model with the company's own parts over it, where it has some.
    `by_class`: of a classifier, the same of each class that there are examples of, by name.
    """

    run: str
    folder: str
    round: int = 0
    digest: str = ""
    guarantee: str = ""
    metric: str = ""
    examples: int = 0
    public: float | None = None
    final: float | None = None
    problem: str = ""
    by_class: dict[str, dict[str, Any]] = field(default_factory=dict)
    personal: float | None = None


def kept_models(company: Company) -> list[KeptModel]:
    """Every model in the home, with its figures, which are computed where they are not yet there."""
    found = []
    with suppress(InputError):  # where a converted model is missing, the models that need it say so
        company.policy.know_pretrained()
    for folder in kept_folders(company.home):
        try:
            found.append(_kept(company, folder))
        except (
            FedblocksError,
            OSError,
            SafetensorError,
            RuntimeError,
        ) as error:  # PyTorch's own are of the last kind
            found.append(KeptModel(folder.name, str(folder), problem=str(error)))
    return found


def _kept(company: Company, folder: Path) -> KeptModel:
    model, card = load_model(folder)
    data = company.held_out()
    figures = _read(folder, card, data) or _measured(company, folder, model, card, data)
    return KeptModel(
        card.run, str(folder), card.round, card.digest, card.guarantee, card.metric,
        figures["examples"], figures["public"], figures["final"], figures.get("problem", ""),
        figures["by_class"], figures.get("personal"),
    )  # fmt: skip


def _read(folder: Path, card: ModelCard, data: Examples | None) -> dict[str, Any] | None:
    """The figures, if they are of this model and of these examples."""
    try:
        found: dict[str, Any] = json.loads((folder / METRICS_FILE).read_bytes())
        same = (found["digest"], found["held_out"], found.get("personal_file", "")) == (
            card.digest,
            None if data is None else data.digest.hex(),
            mark_of(folder / PERSONAL_FILE),
        )
        return found if same and {"examples", "public", "final", "by_class"} <= found.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measured(
    company: Company, folder: Path, model: Denoiser, card: ModelCard, data: Examples | None
) -> dict[str, Any]:
    metric = metric_of(card.model)
    figures: dict[str, Any] = {
        "run": card.run,
        "digest": card.digest,
        "held_out": None if data is None else data.digest.hex(),
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "examples": 0,
        "public": None,
        "final": None,
        "personal": None,
        "personal_file": mark_of(folder / PERSONAL_FILE),
        "by_class": {},
    }
    if data is not None and len(data):
        data.check("held_out.npz", card.model.kind)
        shown = spread(data)
        classes = _classes(card, shown)
        figures["examples"] = len(shown)
        model = model.to(company.policy.device)
        figures["final"] = quality_of(model, shown)
        final = {name: quality_of(model, own) for name, own in classes.items()}
        if figures["personal_file"]:
            with laid_over(model, card, folder / PERSONAL_FILE):
                figures["personal"] = quality_of(model, shown)
        merge(model, read_part(folder / PUBLIC_FILE))
        figures["public"] = quality_of(model, shown)
        figures["by_class"] = {
            name: {"examples": len(own), "public": quality_of(model, own), "final": final[name]}
            for name, own in classes.items()
        }
        if None in (figures["public"], figures["final"]):
            figures["problem"] = f"{metric.words} of {len(shown)} held-out examples is no number"
    private_file.write(folder / METRICS_FILE, json.dumps(figures, indent=2).encode())
    return figures


def _classes(card: ModelCard, data: Examples) -> dict[str, Examples]:
    """A classifier's examples by the name of their class; nothing for another model."""
    parts = {card.name_of(c): data[data.targets == c] for c in range(card.model.kind.labels or 0)}
    return {name: part for name, part in parts.items() if len(part)}


def main(home: Path) -> None:
    """Compute what is not yet there; what goes wrong is in the company's own log."""
    company = Company.deployed(home)
    company.limit_threads()
    for each in kept_models(company):
        if each.problem:
            company.log(f"could not judge the model of run {each.run}: {each.problem}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
