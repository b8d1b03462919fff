"""Membership on trained blocks: sums against their Gaussian ROC, a loose run, differences of cohorts, shadows."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ....threat_model.attacks import attack
from ....threat_model.attacks.cohort_differencing import ATTACK as DIFFERENCING
from ....threat_model.attacks.model_membership import ATTACK as SHADOWS
from ....threat_model.attacks.sum_membership import ATTACK as SUMS
from ....threat_model.clock import Clock
from ....threat_model.membership.sums import Hypotheses, Participation, gradients_of, log_ratio
from ....threat_model.releases import deviation, released
from ....threat_model.results import Result
from ....threat_model.roc import auc, gaussian_auc, pooled_auc
from ....threat_model.subject import Subject
from ...presets import load_settings
from ...simulation.preparation import prepare
from ...simulation.simulate import simulate

_LOOSE = ("privacy.noise_multiplier=0.2", "privacy.epsilon=100000", "training.rounds=6")
_CANDIDATES = 300
_DRAWS = 8
_Z = 0.1


def measure(seeds: int = 3) -> dict[str, Any]:
    """The bars on membership; gaps are in points of the area under the curve, the worst of the seeds."""
    known, unknown, areas, loose, seconds, ratios, shadows = [], [], [], [], [], [], []
    with TemporaryDirectory() as folder:
        run = prepare(load_settings("digits", list(_LOOSE)), Path(folder) / "loose")
        simulate(run)
        for seed in range(seeds):
            subject = Subject.of(run, seed=seed, clock=Clock(120.0))
            tight = replace(subject, plan=subject.plan.changed(noise_multiplier=_Z))
            found = _gaps(tight, seed % subject.plan.model.blocks)
            known.append(found["known"])
            unknown.append(found["unknown"])
            areas.append(found["area"])
            one = replace(subject, blocks=(seed % subject.plan.model.blocks,))
            started = time.monotonic()
            first = _first(SUMS.name, one)
            seconds.append(time.monotonic() - started)
            loose.append(first)
            ratios.append(_first(DIFFERENCING.name, one))
            shadows.append(_first(SHADOWS.name, one))
    return {
        "sum_membership_gap_points": max(known),
        "sum_membership_gap_points_unknown_draws": max(unknown),
        "sum_membership_auc_z_0.1": float(np.mean(areas)),
        "sum_membership_ceiling_z_0.1": gaussian_auc(1 / _Z),
        "loose_run_found": all(r.outcome == "found" and r.value and r.value.low > 0.5 for r in loose),
        "loose_run_auc": [r.value.value for r in loose if r.value],
        "loose_run_seconds": max(seconds),
        "differencing_noise_ratio": [r.value.value for r in ratios if r.value],
        "overfitted_block_auc": [r.control.value for r in shadows if r.control],
    }


def _first(name: str, subject: Subject) -> Result:
    found = next(iter(attack(name).run(subject)))
    assert isinstance(found, Result)
    return found


def _gaps(subject: Subject, block: int) -> dict[str, float]:
    """At z = 0.1 through the run's own mechanism: how far the areas, with noise draws known and unknown, lie from
    that of Gaussians at the distances of the candidates' own gradients."""
    problem, mechanism = subject.problem(block), subject.mechanism(block)
    pool, noise = subject.victims(_CANDIDATES, "bench", block), deviation(mechanism)
    rng = np.random.default_rng(subject.seed)
    participation = Participation.of(mechanism).certain
    scores: dict[str, list[list[float]]] = {"known": [[], []], "unknown": [[], []]}
    distances = []
    generator = subject.generator("bench", block)
    for i in range(len(pool)):
        candidate = pool[i : i + 1]
        true = released(subject, block, candidate, "bench", i, noisy=False).vector[None]
        drawn = gradients_of(problem, mechanism, candidate, _DRAWS, generator).double()
        distances.append(float(true.norm()) / noise)
        # The noise of a release without anyone: what a member adds is known here, so one release serves both.
        nothing = released(subject, block, candidate[:0], "bench", "noise", i, noisy=True).vector
        for inside in (0, 1):
            release = nothing + inside * true[0]
            for name, g in (("known", true), ("unknown", drawn)):
                hypotheses = Hypotheses.of(participation, len(g), rng)
                ratio = log_ratio((g @ release).numpy(), (g @ g.T).numpy(), noise, hypotheses)
                scores[name][inside].append(float(ratio))
    expected = pooled_auc(np.array(distances))
    areas = {name: auc(np.array(s[1]), np.array(s[0])).value for name, s in scores.items()}
    gaps = {name: 100 * abs(area - expected) for name, area in areas.items()}
    return gaps | {"area": areas["unknown"]}
