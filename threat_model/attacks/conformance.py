"""Does a company's own step do what its ledger is charged for? A result for each promise (`epsilon.conformance`)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...blocks.examples import Examples
from ...client.company import Company
from ...client.policy import load_policy
from ...client.units import units
from ...errors import InputError, PrivacyError
from ...privacy.randomness import Randomness
from ..epsilon import checks
from ..epsilon.checks import Check
from ..epsilon.conformance import FAMILY_WISE, STATISTICAL, StepAudit, audit_step
from ..epsilon.mask_checks import audit_masks
from ..epsilon.recording import OwnStep
from ..intervals import Estimate
from ..results import Outcome, Result
from ..subject import Subject
from . import Attack

NAME = "conformance"
_BATCH = 100  # examples, expected
_Array = npt.NDArray[np.float64]


def _applies(subject: Subject) -> str | None:
    if subject.plan.private:
        return None
    return "the plan promises no noise (noise_multiplier = 0), so there is nothing that a step could break"


def _run(subject: Subject) -> Iterator[Result]:
    for block in subject.blocks:
        yield from _block(subject, block)


def _block(subject: Subject, block: int) -> Iterator[Result]:
    # The level is for all companies and blocks together, whichever of them are audited now.
    level = FAMILY_WISE / (STATISTICAL * len(subject.private) * subject.plan.model.blocks)
    cohort = subject.cohort(block)
    noises: dict[str, _Array] = {}
    for number, name in enumerate(cohort):
        subject.clock.tell(number / len(cohort), f"block {block}, {name}")
        if subject.clock.over:
            yield _result(
                block, name, "own step", "inconclusive", "steps", "the time ran out before its step"
            )
            continue
        if len(subject.private[name]) == 0:
            why = f"{name} holds no example that its step could take"
            yield _result(block, name, "own step", "not applicable", "steps", why)
            continue
        started = subject.clock.spent
        try:
            audit = _company(subject, block, name, level)
        except (InputError, PrivacyError) as error:
            yield _result(block, name, "own step", "inconclusive", "steps", f"the step was refused: {error}")
            continue
        noises[name] = audit.noise
        seconds = (subject.clock.spent - started) / len(audit.checks)
        for check in audit.checks:
            yield _of(check, block, name, "own step", seconds)
        for statistic, why in audit.untested.items():
            yield _result(block, name, "own step", "inconclusive", statistic, why)
    if len(noises) > 1:
        yield _of(_companies(noises, level), block, None, "steps of all companies", 0.0)
    for check in audit_masks(level, bits=subject.plan.bits):
        yield _of(check, block, None, "masks", 0.0)


def _company(subject: Subject, block: int, name: str, level: float) -> StepAudit:
    home: Path = subject.run.companies / name
    company = Company(home, load_policy(home / "policy.toml"))
    own = OwnStep(
        model=copy.deepcopy(subject.model).to(company.policy.device),
        block=block,
        data=_part(subject, name),
        plan=subject.plan,
        companies=len(subject.cohort(block)),
        policy=company.policy,
    )

    def randomness(number: int) -> Randomness:
        # By the company's own code, which seeds it in simulations: an audit of the same run finds the same.
        return company.randomness(NAME, subject.seed, block, number)[1]

    return audit_step(
        own,
        randomness,
        examples=units(subject.plan, subject.private[name]),
        level=level,
        proceed=lambda: not subject.clock.over,
    )


def _part(subject: Subject, name: str) -> Examples:
    """So many of the company's examples that a batch fits into one pass of most machines."""
    data, most = subject.private[name], math.ceil(_BATCH / subject.plan.training.sampling_rate)
    if len(data) <= most:
        return data
    return data[torch.randperm(len(data), generator=subject.generator(NAME, name))[:most]]


def _companies(noises: dict[str, _Array], level: float) -> Check:
    """Whether two companies draw from one stream."""
    names: Sequence[str] = list(noises)
    found = checks.shifted_correlation(list(noises.values()), level, "correlation of companies")
    return Check(
        found.name, found.held, found.estimate, found.reason and f"{found.reason} ({', '.join(names)})"
    )


def _of(check: Check, block: int, company: str | None, view: str, seconds: float) -> Result:
    outcome: Outcome = "held" if check.held else "refuted"
    who = "" if company is None else f"{company}: "
    reason = "" if check.held else f"{who}{check.name}: {check.reason}"
    return _result(block, company, view, outcome, check.name, reason, check.estimate, seconds)


def _result(
    block: int,
    company: str | None,
    view: str,
    outcome: Outcome,
    statistic: str,
    reason: str,
    value: Estimate | None = None,
    seconds: float = 0.0,
) -> Result:
    return Result(
        attack=NAME,
        adversary="auditor",
        view=view,
        statement="conformance",
        statistic=statistic,
        unit="number",
        outcome=outcome,
        reason=reason,
        block=block,
        company=company,
        value=value,
        seconds=round(seconds, 4),
    )


ATTACK = Attack(
    name=NAME,
    title="The company's own step, recorded and repeated on a neighbouring batch",
    statement="conformance",
    adversaries=("auditor",),
    sees="its own data, model, randomness and every part of its own step",
    needs="a plan with noise",
    cost="some seconds a company and block: about twenty steps of training",
    applies=_applies,
    run=_run,
    weight=2.0,
)
