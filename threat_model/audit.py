"""The leakage audit of one block: attack what a coordinator sees, with and without the protection.

Three views, from no protection to the opened sum; each with a control (the same attack without noise), the
attack on the noisy release, the prior's mode and a random public image. The accountant assumes that the attacker
sees every step, so single-step releases are attacked. Observations are simulated in double precision, which
favours the attacker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..blocks import BlockObjective
from ..blocks.families.vit import ViTClassifier
from ..errors import InputError
from . import metrics
from .attack_budget import AttackBudget
from .campaign import Attacker, AttackTask, run_all
from .gradients import BlockGradient, Unknowns
from .lm_map import NAME
from .prior import ImagePrior
from .scoring import Guesses, ViewResult, score_view
from .verdicts import TITLES
from .views import Observation, draw_truth, raw_gradient, released, with_noise


@dataclass(frozen=True, kw_only=True)
class AuditDesign:
    """What is attacked: `targets` examples for the first two views, `aggregates` opened sums for the third.

    A sum has the noise of all `cohort` companies; the attacker knows every example in it except one of each of
    `unknown` companies, as if the other companies colluded.

    Raises:
        InputError: a number is too small.
    """

    targets: int = 6
    aggregates: int = 4
    cohort: int = 5
    unknown: int = 1
    seed: int = 0
    candidates: int = 100  # among which a reconstruction must be nearest to its original
    workers: int = 2  # processes; results do not depend on it
    budget: AttackBudget = field(default_factory=AttackBudget)

    def __post_init__(self) -> None:
        least_of = {"targets": 2, "aggregates": 1, "cohort": 1, "unknown": 1, "candidates": 2, "workers": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"expected a whole number >= {least}")


@dataclass(frozen=True)
class AuditResult:
    """`images` holds "<view>.<condition>" arrays (n, C, H, W), condition also "original"; for an npz file."""

    block: int
    draws: int
    max_grad_norm: float
    noise_multiplier: float
    parameters: int
    design: AuditDesign
    views: tuple[ViewResult, ...]
    seconds: float

    @property
    def images(self) -> dict[str, npt.NDArray[np.float32]]:
        return {f"{v.name}.{condition}": a for v in self.views for condition, a in v.pictures.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "attack": NAME,
            "block": self.block,
            "parameters": self.parameters,
            "draws": self.draws,
            "max_grad_norm": self.max_grad_norm,
            "noise_multiplier": self.noise_multiplier,
            "exact_psnr": metrics.EXACT_PSNR,
            "settings": asdict(self.design),
            "views": [view.to_json() for view in self.views],
            "seconds": round(self.seconds, 1),
        }


def audit_block(
    model: ViTClassifier,
    block: int,
    *,
    private: tuple[Tensor, Tensor],
    public: Tensor,
    objective: BlockObjective,
    draws: int,
    max_grad_norm: float,
    noise_multiplier: float,
    design: AuditDesign,
    on_progress: Callable[[float, str], None] = lambda share, text: None,
) -> AuditResult:
    """Attack block `block` of `model`.

    private: images (N, C, H, W) in [0, 1] and labels (N,), of which some are attacked; public: images
    (M, C, H, W) that the attacker knows. `on_progress` receives the finished share in [0, 1] and its view.

    Raises:
        InputError: there are too few examples, or the attack does not apply to this block.
    """
    images, labels = private[0].cpu().double(), private[1].cpu()
    needed = max(design.targets, design.aggregates * design.unknown, 2)
    if len(labels) < needed:
        raise InputError("private", len(labels), f"expected at least {needed} examples to attack")
    started = time.monotonic()
    gradient = BlockGradient(model, block, objective)
    plan = {
        "raw_gradient": (design.targets, 1),
        "company_release": (design.targets, 1),
        "opened_sum": (design.aggregates, min(design.unknown, design.cohort)),
    }
    # 1. Draw the targets and simulate the observations.
    truths: dict[str, list[tuple[Tensor, Unknowns]]] = {}
    tasks: list[AttackTask] = []
    for name, (cases, k) in plan.items():
        noise = torch.Generator().manual_seed(design.seed + 1)
        truths[name] = list(_cases(gradient, images, labels, draws, cases, k, design.seed))
        for case, (_, truth) in enumerate(truths[name]):
            seen = _observed(
                name, gradient(truth), draws, max_grad_norm, noise_multiplier, design.cohort, noise
            )
            tasks += [
                AttackTask((name, condition, case), observation, design.budget, design.seed + case)
                for condition, observation in seen.items()
            ]
    # 2. Attack; the sums first, since they take longest.
    tasks.sort(key=lambda task: -task.observation.examples)
    cost = sum(task.observation.examples for task in tasks)
    done = 0

    def on_done(task: AttackTask) -> None:
        nonlocal done
        done += task.observation.examples
        on_progress(done / cost, TITLES[task.name[0]])

    attacker = Attacker(gradient.model, block, objective, public.cpu())
    found = run_all(attacker, tasks, workers=design.workers, on_done=on_done)
    # 3. Score, together with guesses from the public data only.
    views = []
    for name in plan:
        guesses = _baselines(truths[name], public.cpu().double(), len(model.table), design.seed + 2)
        for task_name, unknowns in sorted(found.items()):
            if task_name[0] == name:
                truth = truths[name][task_name[2]][1]
                guesses.setdefault(task_name[1], Guesses([], [])).add(unknowns.images, unknowns.labels, truth)
        views.append(
            score_view(
                name, truths[name], guesses,
                private=images, candidates=design.candidates, seed=design.seed,
            )
        )  # fmt: skip
    return AuditResult(
        block, draws, max_grad_norm, noise_multiplier, gradient.size, design, tuple(views),
        time.monotonic() - started,
    )  # fmt: skip


def _cases(
    gradient: BlockGradient,
    images: Tensor,
    labels: Tensor,
    draws: int,
    cases: int,
    k: int,
    seed: int,
) -> Iterator[tuple[Tensor, Unknowns]]:
    """(indices, truth) of each case; views of one size attack the same examples and draws."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    for indices in order[: cases * k].split(k):
        yield indices, draw_truth(gradient, images[indices], labels[indices], draws, generator)


def _observed(
    name: str,
    gradients: Tensor,
    draws: int,
    max_grad_norm: float,
    noise_multiplier: float,
    cohort: int,
    generator: torch.Generator,
) -> dict[str, Observation]:
    """Observation by condition; the raw gradient has no noise, and so no control."""
    if name == "raw_gradient":
        return {"released": raw_gradient(gradients, draws)}
    clean = released(gradients, draws, max_grad_norm)
    companies = cohort if name == "opened_sum" else 1
    return {"control": clean, "released": with_noise(clean, noise_multiplier, companies, generator)}


def _baselines(
    truths: list[tuple[Tensor, Unknowns]], public: Tensor, classes: int, seed: int
) -> dict[str, Guesses]:
    """The prior's mode, and random public images with random labels, for every case."""
    generator = torch.Generator().manual_seed(seed)
    mode = ImagePrior.fit(public).mode
    prior, random = Guesses([], []), Guesses([], [])
    for _, truth in truths:
        k = len(truth.labels)
        which = torch.randint(len(public), (k,), generator=generator)
        prior.add(mode.expand(k, *mode.shape), None, truth)
        random.add(public[which], torch.randint(classes, (k,), generator=generator), truth)
    return {"prior": prior, "random": random}
