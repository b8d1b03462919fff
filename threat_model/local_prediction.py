"""The posterior prediction at a company: of its own examples, in the state that it was sent, before it trains."""

from __future__ import annotations

import copy
import secrets

import torch

from ..blocks import BlockObjective, Denoiser
from ..blocks.examples import Examples
from ..errors import InputError
from ..protocol.release import mechanism, secure_step
from ..settings import Plan
from .block_problem import BlockProblem
from .clip_model import ClipModel
from .prediction import Information, information
from .release_model import ReleaseModel
from .releases import deviation
from .unknowns import Layout, unsuited

EXAMPLES = 6
_PRIOR = 500


def informations(
    model: ReleaseModel, examples: Examples, count: int, generator: torch.Generator
) -> list[Information]:
    """Of `count` examples drawn at random, each alone unknown in a release."""
    problem = model.problem
    order = torch.randperm(len(examples), generator=generator)[:count]
    return [
        information(
            model, model.layout.guess(problem.sample(problem.values_of(examples[i[None]]), generator))
        )
        for i in order
    ]


def predicted_gain(model: Denoiser, block: int, data: Examples, plan: Plan) -> float:
    """The most dB, over fields, by which an attack on one release is expected to come closer to one of `EXAMPLES` of
    the company's examples than a guess that knows how its data are spread.

    Raises:
        InputError: it cannot be predicted: several local steps, tokens, or an empty company.
    """
    training = plan.training
    if training.local_steps > 1:
        raise InputError(
            "training.local_steps", training.local_steps, "a prediction is of one step; expected 1"
        )
    if len(data) < 2:
        raise InputError("data", len(data), "a prediction needs two examples or more")
    if not plan.private:
        raise InputError("noise_multiplier", 0.0, "a release without noise shows everything")
    problem = BlockProblem(
        copy.deepcopy(model).cpu(), block, BlockObjective(weight=plan.noise.weight), plan.model,
        draws=training.noise_draws, interface=training.interface,
    )  # fmt: skip
    if (why := unsuited(problem, training.noise_draws)) is not None:
        raise InputError("model.family", plan.model.family, why)
    generator = torch.Generator().manual_seed(secrets.randbits(62))
    known = data[torch.randperm(len(data), generator=generator)[:_PRIOR]]
    # The company's own noise alone: of a shared noise, what is sure to be in the sum.
    size = sum(problem.sizes)
    own = secure_step(plan, size, plan.dropouts + plan.colluders + 1) if plan.secure_step else mechanism(plan)
    layout = Layout(problem, known, training.noise_draws)
    release = ReleaseModel(layout, ClipModel.of(own), steps=1, rate=0.0)
    found = informations(release, data, EXAMPLES, generator)
    noise = deviation(own)
    return max(float(each.gain(noise, field.name).max()) for each in found for field in layout.fields)
