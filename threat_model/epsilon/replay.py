"""The sums that a run has opened, against what its companies' code makes of the same data, state and seeds.

What a step does today says nothing of the sums that are there already: they may have been made by other code. A
simulated company's randomness follows from its seed, so each sum of the transcript can be made again; what was opened
less the clipped gradients of its companies is the noise that was really in it.

Where a sum cannot be made again (data, policy or version have changed since, or it had another noise), the difference
of the gradients is left in that noise. It has nothing to do with the noise and only adds to its size, so that too
little noise is too little all the same.

    for release in transcript:
        found = replayed(run, plan, shared, release)
        found.noise, found.apart
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...blocks import digest, merge
from ...blocks.state import State
from ...client.app import release_labels
from ...client.company import Company
from ...client.policy import load_policy
from ...client.training import model_of
from ...privacy.secure_aggregation import Session, lowest_threshold
from ...protocol.release import block_size, mean_update, mechanism, secure_step
from ...server.run_folder import RunFolder
from ...settings import Plan
from ..releases import deviation
from ..transcript import OpenedRelease
from .recording import OwnStep, Recording, record

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replayed:
    """`noise` (P,): of the opened sum, in promised deviations. `apart`: the norm of what differs between the sum and
    its repetition, over that of the repetition. `tensors`: of an update, in order, with their sizes."""

    noise: Array
    apart: float
    tensors: dict[str, int]


def replayed(run: RunFolder, plan: Plan, shared: State, release: OpenedRelease) -> Replayed:
    """Make a sum of the transcript again; `shared`: the run's shared state.

    Raises:
        InputError, PrivacyError: a company's files, or its step, cannot be used.
    """
    companies, found = len(release.cohort), list[Recording]()
    for name in release.survivors:
        home = run.companies / name
        company = Company(home, load_policy(home / "policy.toml"))
        model = model_of(plan, company.policy.device, release.block)
        merge(model, shared, *release.states.values())
        own = OwnStep(
            model=model, block=release.block, data=company.data(), plan=plan, companies=companies,
            policy=company.policy,
        )  # fmt: skip
        session = _session(plan, release, block_size(model, release.block, plan.training))
        labels = release_labels(
            plan, session, session.model_digest, digest(shared), own.data.digest, company.policy
        )
        found.append(record(own, company.randomness(*labels)[1], places=slice(0), probe=False))
    total = sum((each.residues for each in found[1:]), found[0].residues) & np.uint32((1 << plan.bits) - 1)
    again = mean_update(plan, total, companies, len(found))
    opened = release.mean_update.numpy()
    # Of the sum over companies, without learning rate and divisor.
    unit = -plan.training.expected_batch_size / plan.training.local_learning_rate * len(found)
    noise = (unit * opened - _clean(plan, found, len(opened), companies)) / _deviation(plan, found, companies)
    size = max(float(np.linalg.norm(again)), 1e-300)
    return Replayed(noise, float(np.linalg.norm(opened - again)) / size, own.tensors())


def _clean(plan: Plan, found: list[Recording], size: int, companies: int) -> Array:
    """The sum of what the companies' noise was added to; a clip of the whole update is left in the difference."""
    parts = [each.shared if plan.secure_step else each.clean for each in found]
    whole: Array = sum((part for part in parts if part is not None), np.zeros(size))
    return whole


def _deviation(plan: Plan, found: list[Recording], companies: int) -> float:
    if plan.secure_step:
        return deviation(secure_step(plan, len(found[0].clean), companies), len(found))
    own = mechanism(plan)
    if own.quantile_clip is None:
        return deviation(own, len(found))
    clips = [w * s.sensitivity for each in found for w, s in zip(own.weights(), each.steps, strict=True)]
    return own.quantile_clip.sum_noise_multiplier(own.noise_multiplier) * float(np.linalg.norm(clips))


def _session(plan: Plan, release: OpenedRelease, size: int) -> Session:
    """What the labels of a company's noise are made of; no message was signed for it."""
    n = len(release.cohort)
    return Session(
        run=plan.run, round=release.round, label=f"block-{release.block}", cohort=release.cohort,
        model_digest=digest(*release.states.values()), settings_digest=plan.digest(), length=size, bits=plan.bits,
        threshold=max(plan.threshold(n) or 0, lowest_threshold(n, plan.colluders)),
    )  # fmt: skip
