"""Examples in one place: all companies' together (does federation cost anything?), or one's alone (does it pay?).

The run's own rounds without a secure sum, a company clip or noise: the same public model, order of blocks, local
steps, sampling rate, per-example clip and server optimiser. The divisor of a step's sum grows with the number of
companies whose examples are there, so that a step of the pooled data is as long as one of the federation.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ...blocks import BlockObjective, Denoiser, block_parameters
from ...blocks.examples import Examples
from ...privacy.clipping import pass_size
from ...privacy.randomness import Randomness
from ...privacy.source import CryptographicSource
from ...protocol.release import dp_sgd
from ...server.optimizer import BlockOptimizer
from ...settings import Plan


def train_in_one_place(
    model: Denoiser, data: Examples, plan: Plan, *, companies: int, randomness: Randomness
) -> None:
    """Train the model in place for the plan's rounds on the examples of so many companies."""
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
    for round_ in range(training.rounds):
        for b in (
            [round_ % plan.model.blocks] if training.assignment == "sequential" else range(plan.model.blocks)
        ):
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
    model.requires_grad_(False).eval()
