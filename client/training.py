"""Local training of one block, and the encoding of its update for the secure sum."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..blocks import BlockObjective, Denoiser, build_model
from ..blocks.examples import Examples
from ..privacy.denormals import flushed
from ..privacy.dp_sgd import clip_to_norm
from ..privacy.randomness import Randomness
from ..privacy.source import CryptographicSource
from ..protocol.release import block_size, codec, mechanism, secure_step
from ..settings import Plan
from .batches import examples_at_once
from .kept_prefix import Before, nothing_kept
from .policy import Policy
from .units import drawn_records, groups_of

_models = threading.local()


def model_of(plan: Plan, device: str, block: int) -> Denoiser:
    """The model in which a block of this plan is trained; the caller must merge a state into it.

    Only the blocks that this block reads are in memory. Cached between messages, one a thread: simulated companies
    that train at the same time must not share it.
    """
    return _model(plan, device, None if plan.model.features == "prefix" else block)


def whole_model_of(plan: Plan, device: str) -> Denoiser:
    """As `model_of`, with all blocks."""
    return _model(plan, device, None)


def _model(plan: Plan, device: str, only: int | None) -> Denoiser:
    key = (plan.model, plan.noise, device, only)
    if getattr(_models, "key", None) != key:
        _models.key, _models.model = key, build_model(plan.model, plan.noise, only).to(device)
    kept: Denoiser = _models.model
    return kept


def train_block(
    model: Denoiser,
    block: int,
    data: Examples,
    plan: Plan,
    companies: int,
    randomness: Randomness,
    policy: Policy,
    before: Before = nothing_kept,
) -> npt.NDArray[np.uint32]:
    """The company's input to the secure sum, (P,) residues: its block's update, or its noisy sum of gradients.

    Where the plan's unit is a group of records, the mechanism's examples are the data's groups (see `units`).
    `before`: what is kept of the earlier blocks' features (see `KeptPrefix`); the residues do not depend on it.

    Raises:
        ProtocolError: "no_data", where the data do not name the plan's groups.
        PrivacyError: the machine does not meet the proof's assumptions (see `batches`, `privacy.denormals`).
        UnsupportedLayer: a layer of the block has no per-example gradients.
    """
    active = model.freeze_all_but(block, plan.training.interface).train()
    objective = BlockObjective(weight=plan.noise.weight)
    device, source = model.device, CryptographicSource(randomness)
    groups, records = groups_of(plan, data), plan.training.records_per_group
    examples = len(data) if groups is None else len(groups)

    def losses(indices: Tensor, draws: int) -> Tensor:
        if groups is not None:
            indices = drawn_records(groups, indices, records, randomness)
        batch = data[indices].to(device)
        return objective(
            model, block=block, inputs=batch.inputs, targets=batch.targets, source=source, draws=draws,
            before=before(indices),
        )  # fmt: skip

    # Built outside of `flushed`: calibration must not run in a thread that flushes subnormals.
    if plan.secure_step:
        step = secure_step(plan, block_size(model, block, plan.training), companies)

        def shared_noise() -> npt.NDArray[np.uint32]:
            at_once = examples_at_once(model, block, plan, policy)
            sized = replace(step, examples_at_once=at_once)
            return sized.encode(active, losses, examples=examples, randomness=randomness)

        return flushed(shared_noise)
    training = mechanism(plan)
    if training.quantile_clip is not None:
        bounded = replace(training.quantile_clip, largest=policy.largest_max_grad_norm)
        training = replace(training, quantile_clip=bounded)

    def own_noise() -> Tensor:
        at_once = examples_at_once(model, block, plan, policy)
        sized = replace(training, examples_at_once=at_once)
        return sized.train(active, losses, examples=examples, randomness=randomness)

    update = flushed(own_noise)
    return codec(plan, companies).encode(clip_to_norm(update, plan.company_clip).cpu().numpy())
