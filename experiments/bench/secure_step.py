"""What noise costs: each company its own, all companies one between them, or one pooled data set.

One preset, one public model, one epsilon, as many steps:

    local         every company adds its full noise; no trust in anyone
    secure_step   every step's sum is opened alone, and companies add shares of one noise
    central       the same examples in one place, central DP-SGD: what a trusted curator would reach
    without_noise the same with clipping alone: what is left for noise to take away
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...blocks import BlockObjective, Denoiser, build_model, merge
from ...blocks.examples import Examples
from ...privacy.accounting import calibrate
from ...privacy.clipping import PerExampleClipping, pass_size
from ...privacy.composition import in_a_fresh_ledger
from ...privacy.events import GaussianSteps
from ...privacy.mechanisms.gaussian import add_gaussian_noise
from ...privacy.randomness import Randomness
from ...privacy.source import CryptographicSource
from ...server.checkpoint import Checkpoint
from ...server.optimizer import BlockOptimizer
from ...server.run_folder import RunFolder
from ...settings import RunSettings
from ..presets import load_settings
from ..simulation.preparation import prepare, read_inputs
from ..simulation.simulate import simulate


def measure(
    preset: str = "digits",
    overrides: tuple[str, ...] = (),
    seeds: int = 3,
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Accuracy on held-out private data, mean and deviation over seeds, and the two differences in points."""
    found: dict[str, list[float]] = {
        name: [] for name in ("public", "local", "secure_step", "central", "without_noise")
    }
    for seed in range(seeds):
        for mode in ("local", "secure_step"):
            settings = load_settings(preset, [*overrides, f"seed={seed}", f"privacy.mode={mode}"])
            inputs = read_inputs(settings)
            with tempfile.TemporaryDirectory() as folder:
                run = prepare(settings, Path(folder) / mode, inputs=inputs)
                result = simulate(run)
                metric = result["metric"]
                found[mode].append(result[metric])
                on_progress(f"seed {seed} {mode}: {result[metric]:.4f}, epsilon {result['epsilon']}")
                if mode == "local":
                    found["public"].append(result[f"{metric}_public_model"])
                    for name, noise_multiplier in (("central", noise_of(settings)), ("without_noise", 0.0)):
                        found[name].append(
                            central(
                                settings, run, [*inputs.companies.values()], inputs.heldout, noise_multiplier
                            )
                        )
                        on_progress(f"seed {seed} {name}: {found[name][-1]:.4f}")
    mean = {name: statistics.mean(values) for name, values in found.items()}
    return {
        **{name: round(value, 4) for name, value in mean.items()},
        **{f"{name}_std": round(statistics.pstdev(values), 4) for name, values in found.items()},
        "secure_step_over_local_points": round(100 * (mean["secure_step"] - mean["local"]), 2),
        "central_over_secure_step_points": round(100 * (mean["central"] - mean["secure_step"]), 2),
        "seeds": seeds,
    }


def noise_of(settings: RunSettings) -> float:
    """The noise multiplier that the preset's epsilon allows, by the account of the companies' ledgers."""
    t, p = settings.training, settings.privacy
    assert p.epsilon is not None

    def event_at(noise: float) -> GaussianSteps:
        return GaussianSteps(
            sampling_rate=t.sampling_rate, noise_multiplier=noise, steps=settings.total_steps
        )

    return calibrate(event_at, p.epsilon, in_a_fresh_ledger(p.delta))


def central(
    settings: RunSettings, run: RunFolder, parts: list[Examples], heldout: Examples, noise_multiplier: float
) -> float:
    """DP-SGD on all companies' examples in one place: same model, sampling, clip, steps and optimiser."""
    model = build_model(settings.model, settings.noise)
    public = Checkpoint.load(run.checkpoints, 0)
    merge(model, public.model.shared, *public.model.blocks)
    return pooled(settings, model, parts, heldout, noise_multiplier)


def pooled(
    settings: RunSettings, model: Denoiser, parts: list[Examples], heldout: Examples, noise_multiplier: float
) -> float:
    """The accuracy after `rounds` steps with this noise."""
    t = settings.training
    inputs, targets = torch.cat([d.inputs for d in parts]), torch.cat([d.targets for d in parts])
    objective, randomness = (
        BlockObjective(weight=settings.noise.weight),
        Randomness.from_seed(settings.seed, "central"),
    )
    source = CryptographicSource(randomness)
    optimizers: dict[int, BlockOptimizer] = {}
    for round_ in range(t.rounds):
        b = round_ % settings.model.blocks
        block = model.freeze_all_but(b, t.interface).train()
        at_once = pass_size(t.expected_batch_size * len(parts))
        with PerExampleClipping(
            block, max_grad_norm=settings.privacy.max_grad_norm, examples_at_once=at_once
        ) as clipping:
            batch = torch.from_numpy(randomness.bernoulli(len(targets), t.sampling_rate).nonzero()[0])

            def losses(places: Tensor, batch: Tensor = batch, b: int = b) -> Tensor:
                rows = batch[places]
                return objective(
                    model,
                    block=b,
                    inputs=inputs[rows],
                    targets=targets[rows],
                    source=source,
                    draws=t.noise_draws,
                )

            clipped = clipping.sum(losses, examples=len(batch), draws=t.noise_draws)
            noisy = add_gaussian_noise(clipped, noise_multiplier, randomness)
            update = -t.local_learning_rate / (t.expected_batch_size * len(parts)) * noisy
            optimizer = optimizers.setdefault(b, BlockOptimizer(t, clipping.size))
            start = nn.utils.parameters_to_vector(clipping.parameters).detach()
            nn.utils.vector_to_parameters(optimizer.step(start, update), clipping.parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    return model.eval().chain_quality(heldout.inputs, heldout.targets, generator)[-1]
