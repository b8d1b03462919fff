"""Examples in one place: all companies' together (does federation cost anything?), or one's alone (does it pay?).

The run's own rounds without a secure sum, a company clip or noise: the same public model, order of blocks, local
steps, sampling rate, per-example clip and server optimiser. The divisor of a step's sum grows with the number of
companies whose examples are there, so that a step of the pooled data is as long as one of the federation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ...blocks import BlockObjective, Denoiser, block_parameters, build_model, merge
from ...blocks.examples import Examples
from ...privacy.clipping import pass_size
from ...privacy.randomness import Randomness
from ...privacy.source import CryptographicSource
from ...protocol.release import dp_sgd
from ...server.checkpoint import Checkpoint
from ...server.optimizer import BlockOptimizer
from ...server.run_folder import RunFolder
from ...settings import Plan

Where = Literal["pooled", "alone"]
OnRound = Callable[[int, Denoiser], None]


@dataclass(frozen=True)
class Trained:
    """A model, and the companies whose examples it was trained on."""

    model: Denoiser
    companies: tuple[str, ...]


def trained_in_one_place(
    started: RunFolder,
    plan: Plan,
    where: Where,
    *,
    seed: int,
    device: str,
    on_round: OnRound = lambda round_, model: None,
) -> Iterator[Trained]:
    """One model of all companies' examples, or one of each company's own, from a prepared run's public model and
    data; each as it is done."""
    own = {home.name: Examples.load(home / "data.npz") for home in started.homes()}
    parts = {"all": together(list(own.values()))} if where == "pooled" else own
    for part, data in parts.items():
        companies = tuple(own) if where == "pooled" else (part,)
        model = public_model(started).to(device)
        randomness = Randomness.from_seed(seed, "one place", part)
        train_in_one_place(
            model, data, plan, companies=len(companies), randomness=randomness, on_round=on_round
        )
        yield Trained(model, companies)


def public_model(started: RunFolder) -> Denoiser:
    """The model before any training on private data, with the cut that pretraining has left."""
    plan, public = started.plan(), Checkpoint.load(started.checkpoints, 0)
    model = build_model(plan.model, plan.noise)
    merge(model, public.model.shared, *public.model.blocks)
    return model.requires_grad_(False).eval()


def together(parts: Sequence[Examples]) -> Examples:
    return Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))


def train_in_one_place(
    model: Denoiser,
    data: Examples,
    plan: Plan,
    *,
    companies: int,
    randomness: Randomness,
    on_round: OnRound = lambda round_, model: None,
) -> None:
    """Train the model in place for the plan's rounds on the examples of so many companies.

    `on_round` is told each round, from 1, and may look at the model; what it does to it in between is not undone.
    """
    training = plan.training
    divisor = training.expected_batch_size * companies
    step = replace(
        dp_sgd(training, plan, 0.0),
        expected_batch_size=divisor,
        noise_bands=1,
        examples_at_once=pass_size(divisor),
    )
    objective, source = BlockObjective(weight=plan.noise.weight), CryptographicSource(randomness)
    optimizers: dict[int, BlockOptimizer] = {}
    trained = plan.trained_blocks
    for round_ in range(training.rounds):
        turn = trained[round_ % len(trained)]
        for b in [turn] if training.assignment == "sequential" else trained:
            block = model.freeze_all_but(b, training.interface).train()

            def losses(indices: Tensor, draws: int, b: int = b) -> Tensor:
                rows = data[indices].to(model.device)
                return objective(
                    model, block=b, inputs=rows.inputs, targets=rows.targets, source=source, draws=draws
                )

            parameters = [p for _, p in block_parameters(block)]
            start = nn.utils.parameters_to_vector(parameters).detach().clone()
            update = step.train(block, losses, examples=len(data), randomness=randomness)
            optimizer = optimizers.setdefault(b, BlockOptimizer(training, len(start)))
            nn.utils.vector_to_parameters(optimizer.step(start, update), parameters)
        on_round(round_ + 1, model)
    model.requires_grad_(False).eval()
