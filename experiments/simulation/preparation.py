"""Everything that happens before round one: data, public model, calibrated noise, companies' homes."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import torch
from safetensors import SafetensorError

from ... import atomic_file
from ...blocks import BlockObjective, Denoiser, Schedule, build_model, load_state, merge, split, train
from ...blocks.examples import Examples, Groups
from ...blocks.pretrained import places
from ...blocks.pretrained.settings import PretrainedSettings
from ...blocks.size import parameters_of
from ...blocks.state import check_part
from ...client.company import COMPANIES, Company
from ...client.data import load_examples
from ...client.data.findings import Findings
from ...client.held_out import HELD_OUT_FILE
from ...client.held_out import split as hold_out
from ...client.policy import LARGEST_MODEL, Policy
from ...errors import InputError, RunError
from ...privacy.accounting import calibrate, releases_within
from ...privacy.composition import in_a_fresh_ledger
from ...privacy.events import Event
from ...privacy.secure_aggregation import Identity
from ...protocol import private_file
from ...protocol.evaluation import evaluation_epsilon, whole_evaluation
from ...protocol.identity import IDENTITY_FILE, ROSTER_FILE, save_identity, save_roster
from ...protocol.release import default_company_clip, event_of, fewest_bits, largest_block, release_event
from ...server.checkpoint import Checkpoint
from ...server.run_folder import RunFolder
from ...settings import Plan, RunSettings, SimulationSettings, write_simulation
from .machine import check_device, check_memory, check_writable
from .partition import held_out_pool
from .private_data import read_private

PUBLIC_TEST_SHARE = 0.2

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Inputs:
    """All data of a simulation, checked: nothing has been written yet."""

    public_train: Examples
    public_test: Examples
    companies: dict[str, Examples]  # by name
    rows: dict[str, npt.NDArray[np.int64]]  # by name, which of all private examples these are
    private: int  # how many private examples there are of all companies
    heldout: Examples
    own_heldout: dict[str, Examples]  # the same by company, more of them where `heldout` is not all
    findings: dict[str, Findings]  # by source: "public", and "private" or the companies' names


def read_inputs(settings: SimulationSettings) -> Inputs:
    """Load, check and deal the data; the same settings give the same parts."""
    rng = _holding_out(settings)
    findings = {"public": Findings(settings.data.public.source)}
    public_train, public_test = read_public(settings, rng, findings["public"])
    private, parts = read_private(settings, findings)
    rows, heldout = {}, []
    drawn = settings.companies.examples is not None
    share = settings.companies.holdout
    pool = held_out_pool(private, settings.model, share, settings.seed) if drawn else None
    for name, part in parts.items():
        if pool is None:
            rows[name], out = _hold_out(part, share, rng, private[part].groups, least=1)
        else:
            rows[name], out = part[~pool[part]], part[pool[part]]
        heldout.append(out)
    most = settings.data.test_examples
    own = {name: private[_spread(out, most)] for name, out in zip(parts, heldout, strict=True)}
    every = np.concatenate(heldout) if pool is None else np.unique(np.concatenate(heldout))
    out = _spread(every, most)
    companies = {name: private[kept] for name, kept in rows.items()}
    return Inputs(public_train, public_test, companies, rows, len(private), private[out], own, findings)


def read_public(
    settings: RunSettings, rng: np.random.Generator | None = None, findings: Findings | None = None
) -> tuple[Examples, Examples]:
    """The public examples, (train, test), as in `read_inputs`."""
    check_device(settings.device)
    check_memory(settings.model, settings.device)
    contrast = settings.data.match_contrast
    public = load_examples("data.public.source", settings.data.public, settings.model, contrast, findings)
    rng = rng or _holding_out(settings)
    train, test = _hold_out(np.arange(len(public)), PUBLIC_TEST_SHARE, rng, public.groups)
    if len(test) == 0:
        raise InputError(
            "data.public.source", settings.data.public.source, "too few examples to hold some out"
        )
    return public[train], public[_spread(test, settings.data.test_examples)]


def _holding_out(settings: RunSettings) -> np.random.Generator | None:
    """What draws the held-out examples; none where they are the last ones.

    Texts and series are held out from their end: drawn at random, a held-out future would stand in the past of a
    training window.
    """
    ordered = settings.model.label_side is None
    return None if ordered else np.random.default_rng([settings.seed, 1])


def _spread(index: npt.NDArray[np.int64], at_most: int) -> npt.NDArray[np.int64]:
    """At most so many of the entries, at even distances: of texts and series some of every part."""
    if len(index) <= at_most:
        return index
    return index[np.arange(at_most) * len(index) // at_most]


def _hold_out(
    index: npt.NDArray[np.int64],
    share: float,
    rng: np.random.Generator | None,
    groups: Groups | None,
    least: int = 0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(kept, held out): the last share in order, or of a shuffle; with `groups`, that of each entry, the share of
    the groups, each as a whole."""
    if groups is not None:
        _, first = np.unique(groups.numbers, return_index=True)
        by_order = np.argsort(first, kind="stable").astype(np.int64)
        _, chosen = _hold_out(by_order, share, rng, None, least)
        out = np.isin(groups.numbers, chosen)
        return index[~out], index[out]
    order = index if rng is None else rng.permutation(index)
    cut = len(order) - max(least, int(len(order) * share))
    return order[:cut], order[cut:]


def make_plan(settings: RunSettings, model: Denoiser, run: str) -> Plan:
    """The plan with everything left open filled in: noise calibrated, bits, company bound.

    Raises: InputError where epsilon does not pay for every step, or the secure sum cannot hold the updates.
    """
    t, p = settings.training, settings.privacy
    size = largest_block(model, t)
    largest = settings.largest_group
    noise = affordable_noise(settings, size)
    bits = settings.secure_aggregation.bits
    if p.mode == "secure_step" and noise > 0:
        bits = bits or fewest_bits(p, noise, size, largest)
    plan = Plan.of(
        settings,
        run,
        edges=model.partition.edges,
        noise_multiplier=noise,
        company_clip=p.company_clip or default_company_clip(t, p, noise, size),
        bits=bits,
    )
    release_event(plan, size, largest)  # refuses what the sum's encoding would
    return plan


def affordable_noise(settings: RunSettings, size: int) -> float:
    """The noise multiplier that is set, or else the least with which the whole run, evaluations included, costs a
    fresh ledger `epsilon`, in blocks of `size` values; 0 without an epsilon.

    Raises: InputError where epsilon does not pay for every step.
    """
    t, p = settings.training, settings.privacy
    if p.epsilon is None:
        return 0.0
    bits = settings.secure_aggregation.width(p.mode == "secure_step")

    def release_at(noise: float) -> Event:
        return event_of(t, p, noise, size, bits=bits)

    account, wanted = in_a_fresh_ledger(p.delta), settings.most_releases
    judged = evaluation_epsilon(whole_evaluation(settings.evaluation, settings.model, p, t.rounds), p.delta)
    left = p.epsilon - judged
    if left <= 0 and settings.evaluation is not None:
        noise = settings.evaluation.noise_multiplier
        rule = f"the evaluations alone cost {judged:.3g} of epsilon={p.epsilon}: more noise, or fewer of them"
        raise InputError("evaluation.noise_multiplier", noise, rule)
    noise = p.noise_multiplier or calibrate(lambda z: release_at(z).times(wanted), left, account)
    fits = releases_within(left, release_at(noise), account)
    if fits < wanted:
        beside = f", less {judged:.3g} for evaluations," if judged else ""
        rule = f"epsilon={p.epsilon}{beside} pays for {fits * t.local_steps} of {settings.total_steps} steps"
        raise InputError("privacy.noise_multiplier", noise, rule)
    return noise


def new_run(runs: Path, settings: RunSettings) -> Path:
    """A fresh folder's path; nothing is made yet."""
    if runs.exists() and not runs.is_dir():
        raise InputError("--runs-dir", str(runs), "is a file, expected a folder")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return runs / f"{settings.name}-{stamp}-{secrets.token_hex(2)}"


def prepare(
    settings: SimulationSettings,
    folder: Path,
    *,
    inputs: Inputs | None = None,
    on_step: OnStep = lambda step: None,
) -> RunFolder:
    """Make the run folder: check everything, pretrain on public data, write companies' homes.

    The folder appears under its name only when it is whole.
    """
    inputs = inputs or read_inputs(settings)
    make_plan(settings, fresh_model(settings), folder.name)  # what it refuses needs no trained model
    check_writable(folder.parent)
    model = public_model(settings, inputs.public_train, on_step)
    plan = make_plan(settings, model, folder.name)

    # Examples of companies lie in it.
    with atomic_file.creating_folder(folder, mode=0o700, loose=(COMPANIES,)) as draft:
        run = RunFolder(draft)
        run.write_settings(settings, plan)
        write_simulation(draft, settings)
        Checkpoint(0, split(model)).save(_made(run.checkpoints))
        inputs.public_test.save(_made(run.evaluation) / "public.npz")
        inputs.heldout.save(run.evaluation / "heldout.npz")
        for name, own in inputs.own_heldout.items():
            own.save(_made(run.own_heldout) / f"{name}.npz")
        inputs.public_train.save(run.path / "public_train.npz")
        found = {side: findings.to_json() for side, findings in inputs.findings.items()}
        atomic_file.write(
            run.path / "data.json", json.dumps(found, indent=2).encode(), mode=atomic_file.OWNER_ONLY
        )
        for name, data in inputs.companies.items():
            write_home(run.companies / name, name, settings, data)
        if settings.protocol == "on":
            introduce(run)
    return RunFolder(folder.resolve())


def public_model(settings: RunSettings, public: Examples, on_step: OnStep) -> Denoiser:
    """A fresh model trained on public data, a function of settings and data alone; or the one of
    `pretraining.folder`."""
    if settings.pretraining.folder is not None:
        return pretrained(settings, Path(settings.pretraining.folder)).to(settings.device)
    model = fresh_model(settings).to(settings.device)
    data = public.to(settings.device)
    closed_form = settings.model.kind.target_classes is not None
    refit = settings.noise.partition == "equi-information" and not closed_form
    train(
        model,
        data.inputs,
        data.targets,
        objective=BlockObjective(weight=settings.noise.weight),
        schedule=schedule_of(settings),
        generator=torch.Generator().manual_seed(settings.seed),
        refit_every=settings.noise.refit_every if refit and settings.noise.edges is None else None,
        on_step=on_step,
    )
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        rate = settings.pretraining.learning_rate
        rule = "public pretraining ended in NaN; choose a lower rate, or less weight_decay"
        raise InputError("pretraining.learning_rate", rate, rule)
    return model


def fresh_model(settings: RunSettings) -> Denoiser:
    """Initial weights, a function of the settings alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build_model(settings.model, settings.noise)


def schedule_of(settings: RunSettings) -> Schedule:
    """The schedule of public pretraining."""
    return Schedule(**settings.pretraining.model_dump(exclude={"folder"}))


def pretrained(settings: RunSettings, folder: Path) -> Denoiser:
    """The model that `fedblocks pretrain` left in the folder, refused if it is not of these settings."""
    model = build_model(settings.model, settings.noise)
    try:
        state = load_state(folder)
        check_part(model, state.shared, None)
        if len(state.blocks) != settings.model.blocks:
            raise RunError(f"{len(state.blocks)} blocks, the model has {settings.model.blocks}")
        for b, part in enumerate(state.blocks):
            check_part(model, part, b)
    except (RunError, SafetensorError, OSError) as error:
        raise InputError("pretraining.folder", str(folder), str(error)) from None
    merge(model, state.shared, *state.blocks)
    return model.requires_grad_(False).eval()


def write_home(home: Path, company: str, settings: RunSettings, data: Examples) -> None:
    """A simulated company's home: its data, an empty ledger, and its policy."""
    _made(_made(home.parent) / home.name)
    if settings.evaluation is not None and isinstance(settings, SimulationSettings):
        # Under a key that follows from the seed, so that a simulation can be repeated.
        key = hashlib.sha256(f"held out {settings.seed} {company}".encode()).digest()
        data, out = hold_out(data, settings.companies.held_out, key)
        out.save(home / HELD_OUT_FILE)
    data.save(home / "data.npz")
    ledger = not isinstance(settings, SimulationSettings) or settings.protocol == "on"
    save_policy(home, policy_of(settings, company), ledger=ledger)


def policy_of(settings: RunSettings, company: str) -> Policy:
    """The rules that a willing company would write."""
    return Policy(
        company=company,
        epsilon_ceiling=settings.privacy.epsilon or 0.0,
        delta=settings.privacy.delta,
        data=settings.model.kind,
        approval="never",
        simulation_seed=settings.seed,
        **asked_of_companies(settings),
    )


def asked_of_companies(settings: RunSettings) -> dict[str, Any]:
    """What a run of these settings asks of a company's rules, but for its budget: field of `Policy` to value."""
    found: dict[str, Any] = {
        "allow_interface": settings.training.interface,
        "minimum_cohort": settings.secure_aggregation.minimum_cohort,
        "largest_model": max(LARGEST_MODEL, parameters_of(settings.model)),
        "i_accept_no_dp": settings.privacy.i_accept_no_dp,
        "allow_shared_noise": settings.privacy.mode == "secure_step",
        "least_colluders": settings.privacy.colluders,
        "device": settings.device,
    }
    if isinstance(settings.model, PretrainedSettings):
        found["pretrained"] = (str(places.converted(settings.model.pretrained)[0]),)
    return found


def save_policy(home: Path, policy: Policy, *, ledger: bool = True) -> None:
    """A simulated company's rules, and the ledger that they are held against, if there is to be one."""
    rules = tomli_w.dumps(policy.model_dump(exclude_none=True))
    private_file.write(home / "policy.toml", rules.encode())
    if ledger:
        Company(home, policy).create_ledger()


def introduce(run: RunFolder) -> None:
    """Give every simulated company an identity, and all of them and the coordinator one roster.

    Real companies make their own key and exchange the public halves out of band.
    """
    homes = run.homes()
    members = {}
    for home in homes:
        identity = Identity.generate()
        save_identity(home / IDENTITY_FILE, identity)
        members[home.name] = identity.public
    save_roster(run.roster_file, members)
    for home in homes:
        _link(run.roster_file, home / ROSTER_FILE)


def _link(file: Path, other: Path) -> None:
    """The same file under another name, or a copy where there are no links: thousands of rosters of thousands take
    gigabytes."""
    try:
        os.link(file, other)
    except OSError:
        private_file.write(other, file.read_bytes())


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
