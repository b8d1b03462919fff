"""Conformance: twelve defects in the real step, each of which must be found, and sound steps, which must not alarm.

Defects are planted in the step of a company of the digits preset, at its public model and with its own noise; sound
steps are small ones of every mechanism and family. Each defect must show in the statistic that it breaks.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from ....blocks import Denoiser
from ....blocks.examples import Examples
from ....client.batches import random_examples
from ....client.policy import Policy
from ....privacy.randomness import Randomness
from ....privacy.source import CryptographicSource
from ....settings import RunSettings, SimulationSettings
from ....threat_model.epsilon.checks import Check
from ....threat_model.epsilon.conformance import FAMILY_WISE, STATISTICAL, audit_step
from ....threat_model.epsilon.defects import DEFECTS, Defect, Mode
from ....threat_model.epsilon.mask_checks import audit_masks
from ....threat_model.epsilon.recording import OwnStep
from ...presets import load_settings
from ...simulation.preparation import fresh_model, make_plan, public_model, read_inputs

CLEAN_RUNS = 200
_COMPANIES = 5
_SHARED = ("privacy.mode=secure_step", "privacy.dropouts=1")
_EPOCHS = ("training.batches=epochs", "training.sampling_rate=0.25")
_SMALL = (
    "model.hidden_size=16",
    "model.heads=2",
    "training.expected_batch_size=20",
    "training.sampling_rate=0.5",
)
_TWO = ("model.layers=2", "model.blocks=2")
# Mechanisms of the smallest vision block, and the mechanism as shipped of every other family.
SOUND: dict[str, tuple[str, tuple[str, ...]]] = {
    "Poisson batches": ("digits", _TWO),
    "shares of noise": ("digits", (*_TWO, *_SHARED)),
    "local steps": ("digits", (*_TWO, "training.local_steps=3", "training.local_learning_rate=0.1")),
    "pull to the start": (
        "digits",
        (*_TWO, "training.local_steps=3", "training.local_learning_rate=0.1", "training.proximal=3"),
    ),
    "epochs": ("digits", (*_TWO, *_EPOCHS, "training.local_steps=4")),
    "correlated noise": ("digits", (*_TWO, *_EPOCHS, "training.local_steps=8", "training.noise_bands=3")),
    "moving clip": ("digits", (*_TWO, "training.local_steps=3", "privacy.clip_quantile=0.5")),
    "per-layer clipping": ("digits", (*_TWO, "privacy.clipping=per-layer")),
    "automatic clipping": ("digits", (*_TWO, "privacy.clipping=automatic")),
    "little noise": (
        "digits",
        (*_TWO, "training.rounds=1", "privacy.noise_multiplier=0.05", "privacy.epsilon=1e6"),
    ),
    "dit": ("dit-digits", (*_TWO, "model.patch_size=4")),
    "ar-lm": ("ar-text", (*_TWO, "model.sequence_length=12")),
    "masked-lm": ("masked-text", (*_TWO, "model.sequence_length=12")),
    "recurrent-lm": ("recurrent-text", ("model.layers=4", "model.sequence_length=12")),
    "tabular": ("tabular-cancer", _TWO),
    "forecaster": (
        "forecast-series",
        (*_TWO, "model.context_length=8", "model.horizon=4", "model.patch_size=4"),
    ),
}


def measure(seeds: int = 3, clean_runs: int = CLEAN_RUNS) -> dict[str, Any]:
    """`defects_caught`: of 12, at the worst of the seeds. `clean_alarms`: of `clean_runs`, at a family-wise 1e-4."""
    torch.set_num_threads(1)
    trained = {mode: trained_step(mode) for mode in ("local", "secure_step")}
    caught, seconds, missed = [], [], []
    for seed in range(seeds):
        started = time.monotonic()
        found = {name: _shows(defect, trained[defect.modes[0]], seed) for name, defect in DEFECTS.items()}
        seconds.append(time.monotonic() - started)
        caught.append(sum(found.values()))
        missed += [name for name, shown in found.items() if not shown]
    sound = {name: sound_step(name) for name in SOUND}
    sound |= {f"digits, {mode}": own for mode, own in trained.items()}
    names, alarms = list(sound), []
    started = time.monotonic()
    for number in range(clean_runs):
        name = names[number % len(names)]
        failed = [check for check in audited(sound[name], number) if not check.held]
        alarms += [f"{name}: {check.name}: {check.reason}" for check in failed[:1]]
    return {
        "defects_caught": min(caught),
        "defects": len(DEFECTS),
        "defects_missed": missed,
        "defects_seconds": round(max(seconds), 1),
        "clean_alarms": len(alarms),
        "clean_runs": clean_runs,
        "clean_reasons": alarms,
        "clean_seconds": round(time.monotonic() - started, 1),
    }


def audited(own: OwnStep, seed: int) -> list[Check]:
    """Everything that a company tests, with randomness from a seed; keys of masks are fresh."""

    def randomness(number: int) -> Randomness:
        return Randomness.from_seed(seed, "conform", number)

    level = FAMILY_WISE / STATISTICAL
    return [*audit_step(own, randomness, level=level).checks, *audit_masks(level, bits=own.plan.bits)]


def _shows(defect: Defect, own: OwnStep, seed: int) -> bool:
    with defect.planted():
        return any(check.name == defect.shows and not check.held for check in audited(own, seed))


def trained_step(mode: Mode) -> OwnStep:
    """The step of a company of the digits preset, from its public model."""
    overrides = _SHARED if mode == "secure_step" else ()
    settings: SimulationSettings = load_settings("digits", [*overrides, "pretraining.steps=100"])
    inputs = read_inputs(settings)
    model = public_model(settings, inputs.public_train, lambda step: None)
    return _step(settings, model, next(iter(inputs.companies.values())))


def sound_step(name: str, examples: int = 60) -> OwnStep:
    """A small step on random examples. `name`: of `SOUND`."""
    preset, overrides = SOUND[name]
    settings = load_settings(preset, [*_SMALL, *overrides])
    source = CryptographicSource(Randomness.from_seed(0, "examples", name))
    return _step(settings, fresh_model(settings), random_examples(settings.model.kind, examples, source))


def _step(settings: RunSettings, model: Denoiser, data: Examples) -> OwnStep:
    policy = Policy(company="acme", epsilon_ceiling=1e6, delta=1e-5, data=settings.model.kind)
    plan = make_plan(settings, model, "bench")
    return OwnStep(model=model, block=0, data=data, plan=plan, companies=_COMPANIES, policy=policy)
