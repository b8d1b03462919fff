"""What federation costs: the simulated run against the same arithmetic in a plain PyTorch loop.

Both compute on one core, train the same block of the same model on the same examples, clip per example with
Opacus and average the companies' updates; the plain loop has no messages, no serialisation, no secure
aggregation, no checkpoints and no company folders.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule

from ...blocks import BlockObjective, build_model, merge, sample_chain
from ...client.data import LabelledImages
from ...config import Settings, load_settings
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ..preparation import prepare, read_inputs
from ..simulation import simulate

OVERRIDES = (
    "workers=1",
    "pretraining.steps=1",
    "privacy.epsilon=none",
    "privacy.i_accept_no_dp=true",
    "training.local_steps=2",
    "training.local_learning_rate=0.1",
    "training.expected_batch_size=100",
    "training.server_optimizer=fedavg",
    "training.server_learning_rate=1.0",
)


def measure(companies: int = 20, rounds: int = 10, repeats: int = 3) -> dict[str, Any]:
    """Median seconds of both loops, taken in turns, and their ratio."""
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
    federated, plain = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            run = prepare(settings, Path(folder) / f"run-{repeat}", inputs=inputs)
            public = Checkpoint.load(run.checkpoints, 0)
            federated.append(_seconds(lambda run=run: simulate(run)))
            plain.append(_seconds(lambda run=run, public=public: plain_loop(settings, run, public)))
    ours, theirs = statistics.median(federated), statistics.median(plain)
    return {
        "companies": companies,
        "rounds": rounds,
        "repeats": repeats,
        "federated_seconds": round(ours, 3),
        "plain_loop_seconds": round(theirs, 3),
        "ratio_to_plain_loop": round(ours / theirs, 3),
    }


def _seconds(job: Any) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def plain_loop(settings: Settings, run: RunFolder, public: Checkpoint) -> None:
    """Federated averaging as one would write it in a notebook."""
    t, c = settings.training, settings.privacy.max_grad_norm
    model = build_model(settings.model, settings.noise)
    merge(model, public.model.shared, *public.model.blocks)
    objective = BlockObjective()
    homes = sorted(run.companies.iterdir())
    parts = [LabelledImages.load(home / "data.npz") for home in homes]
    test_sets = [LabelledImages.load(file) for file in sorted(run.evaluation.glob("*.npz"))]
    generator = torch.Generator().manual_seed(0)
    _evaluate(model, test_sets)
    for round_ in range(t.rounds):
        b = round_ % settings.model.blocks
        block = model.freeze_all_but(b).train()
        parameters = list(block.parameters())
        start = torch.nn.utils.parameters_to_vector(parameters).detach()
        updates = []
        for data in parts:
            torch.nn.utils.vector_to_parameters(start.clone(), parameters)
            hooks = GradSampleModule(block, loss_reduction="sum")
            for _ in range(t.local_steps):
                batch = torch.rand(len(data), generator=generator) < t.sampling_rate
                with torch.no_grad():
                    context = model.encode(data.images[batch]).repeat_interleave(t.noise_draws, dim=0)
                labels = data.labels[batch].repeat_interleave(t.noise_draws)
                sigma, eps = objective.draw(model, b, len(labels), context.shape[-1], generator)
                objective.at(model, b, context, labels, sigma, eps).sum().backward()
                gradients = [
                    p.grad_sample.view(int(batch.sum()), t.noise_draws, -1).mean(1)  # type: ignore[attr-defined]
                    for p in parameters
                ]
                norms = torch.stack([(g * g).sum(1) for g in gradients]).sum(0).sqrt()
                factors = (c / norms).clamp(max=1.0)
                step = torch.cat([factors @ g for g in gradients])
                now = torch.nn.utils.parameters_to_vector(parameters).detach()
                now -= t.local_learning_rate / t.expected_batch_size * step
                torch.nn.utils.vector_to_parameters(now, parameters)
                for p in parameters:
                    p.grad = p.grad_sample = None  # type: ignore[attr-defined]
            hooks.to_standard_module()
            updates.append(torch.nn.utils.parameters_to_vector(parameters).detach() - start)
        torch.nn.utils.vector_to_parameters(start + torch.stack(updates).mean(0), parameters)
    _evaluate(model, test_sets)


def _evaluate(model: Any, test_sets: list[LabelledImages]) -> None:
    for data in test_sets:
        sample_chain(model.eval(), data.images, torch.Generator().manual_seed(0))
