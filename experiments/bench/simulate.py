"""What federation costs: the simulated run against the same arithmetic in a plain PyTorch loop.

Both compute on one core, train the same block of the same model on the same examples, clip per example and
average the companies' updates; the plain loop has no messages, no serialisation, no secure aggregation, no
checkpoints and no company folders. Ten local steps at sampling rate 0.5 are the five local epochs of FedAvg
(McMahan et al. 2017). The plain loop is timed with the clipping of fedblocks, so that the ratio is what
federation costs, and once more with that of Opacus' hooks, which is what one would write without fedblocks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from ...blocks import BlockObjective, Seeded, block_parameters, build_model, merge, sample_chain
from ...blocks.examples import Examples
from ...privacy.clipping import PerExampleClipping, pass_size
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import RunSettings
from ..presets import load_settings
from ..simulation.preparation import prepare, read_inputs
from ..simulation.simulate import simulate

OVERRIDES = (
    "workers=1",
    "pretraining.steps=1",
    "privacy.epsilon=none",
    "privacy.i_accept_no_dp=true",
    "training.local_steps=10",
    "training.local_learning_rate=0.1",
    "training.expected_batch_size=100",
    "training.server_optimizer=fedavg",
    "training.server_learning_rate=1.0",
)


ClippedGradients = Callable[[nn.Module, Callable[[Tensor], Tensor], int, RunSettings], Tensor]


def measure(companies: int = 20, rounds: int = 10, repeats: int = 3) -> dict[str, Any]:
    """Median seconds of the three loops, taken in turns, and their ratios."""
    settings = load_settings(
        "digits",
        [
            *OVERRIDES,
            f"companies.count={companies}",
            f"training.rounds={rounds}",
            f"training.evaluate_every={rounds}",
        ],
    )
    torch.set_num_threads(1)
    inputs = read_inputs(settings)
    seconds: dict[str, list[float]] = {"federated": [], "plain_loop": [], "opacus_loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            run = prepare(settings, Path(folder) / f"run-{repeat}", inputs=inputs)
            public = Checkpoint.load(run.checkpoints, 0)
            jobs: dict[str, Callable[[], object]] = {
                "federated": partial(simulate, run),
                "plain_loop": partial(plain_loop, settings, run, public, by_book_keeping),
                "opacus_loop": partial(plain_loop, settings, run, public, by_opacus_hooks),
            }
            for name, job in jobs.items():
                seconds[name].append(_seconds(job))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "companies": companies,
        "rounds": rounds,
        "repeats": repeats,
        **{f"{name}_seconds": round(value, 3) for name, value in median.items()},
        "federation_ms_per_company_and_round": round(
            1000 * (median["federated"] - median["plain_loop"]) / (companies * rounds), 2
        ),
        "ratio_to_plain_loop": round(median["federated"] / median["plain_loop"], 3),
        "ratio_to_opacus_loop": round(median["federated"] / median["opacus_loop"], 3),
    }


def _seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def by_book_keeping(
    block: nn.Module, losses: Callable[[Tensor], Tensor], n: int, settings: RunSettings
) -> Tensor:
    """Sum of clipped gradients (P,), as fedblocks computes it."""
    at_once = pass_size(settings.training.expected_batch_size)
    with PerExampleClipping(
        block, max_grad_norm=settings.privacy.max_grad_norm, examples_at_once=at_once
    ) as clipping:
        return clipping.sum(losses, examples=n, draws=settings.training.noise_draws).vector


def by_opacus_hooks(
    block: nn.Module, losses: Callable[[Tensor], Tensor], n: int, settings: RunSettings
) -> Tensor:
    """Sum of clipped gradients (P,) from per-example gradients that Opacus' hooks form."""
    hooks = GradSampleModule(block, loss_reduction="sum")
    losses(torch.arange(n)).sum().backward()
    parameters = [p for _, p in block_parameters(block)]
    draws = settings.training.noise_draws
    gradients = [p.grad_sample.view(n, draws, -1).mean(1) for p in parameters]  # type: ignore[attr-defined]
    norms = torch.stack([(g * g).sum(1) for g in gradients]).sum(0).sqrt()
    factors = (settings.privacy.max_grad_norm / norms).clamp(max=1.0)
    total = torch.cat([factors @ g for g in gradients])
    hooks.to_standard_module()
    for p in parameters:
        p.grad = p.grad_sample = None  # type: ignore[attr-defined]
    return total


def plain_loop(
    settings: RunSettings, run: RunFolder, public: Checkpoint, gradients: ClippedGradients
) -> None:
    """Federated averaging as one would write it in a notebook."""
    t = settings.training
    model = build_model(settings.model, settings.noise)
    merge(model, public.model.shared, *public.model.blocks)
    objective = BlockObjective()
    parts = [Examples.load(home / "data.npz") for home in run.homes()]
    test_sets = [Examples.load(file) for file in sorted(run.evaluation.glob("*.npz"))]
    generator = torch.Generator().manual_seed(0)
    _evaluate(model, test_sets)
    for round_ in range(t.rounds):
        b = round_ % settings.model.blocks
        block = model.freeze_all_but(b, t.interface).train()
        parameters = [p for _, p in block_parameters(block)]
        start = nn.utils.parameters_to_vector(parameters).detach()
        updates = []
        for data in parts:
            nn.utils.vector_to_parameters(start.clone(), parameters)
            for _ in range(t.local_steps):
                joins = torch.rand(len(data), generator=generator) < t.sampling_rate

                def losses(places: Tensor, b: int = b, batch: Examples = data[joins]) -> Tensor:
                    rows = batch[places]
                    return objective(
                        model, block=b, inputs=rows.inputs, targets=rows.targets, source=Seeded(generator),
                        draws=t.noise_draws,
                    )  # fmt: skip

                step = gradients(block, losses, int(joins.sum()), settings)
                now = nn.utils.parameters_to_vector(parameters).detach()
                now -= t.local_learning_rate / t.expected_batch_size * step.float()
                nn.utils.vector_to_parameters(now, parameters)
            updates.append(nn.utils.parameters_to_vector(parameters).detach() - start)
        nn.utils.vector_to_parameters(start + torch.stack(updates).mean(0), parameters)
    _evaluate(model, test_sets)


def _evaluate(model: Any, test_sets: list[Examples]) -> None:
    for data in test_sets:
        sample_chain(model.eval(), data.inputs, data.targets, torch.Generator().manual_seed(0))
