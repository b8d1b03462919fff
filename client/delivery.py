"""A finished run's model as it comes to a company: accepted whole and checked, or not at all.

HOME/models/RUN/
    model.safetensors, model.json   as `fedblocks model export` writes them; see `blocks.model_file`
    public.safetensors              what the changed tensors were in the public model, to compare with
    metrics.json                    what both are worth on the company's held-out examples; see `models`

It is taken for a run that the company has joined, by the digest of what was joined: the plan says what the model is,
and the shared part lies at the company already. Parts come in messages of their own and wait in models/.incoming.
Each tensor is checked by name, type, shape and for values that are not finite, what a run does not train must not
have changed, and the digest of the whole must be the card's. A run's model is kept once; another one for the same run
is refused. What cannot be checked is the coordinator's word: the guarantee's sentence, the public model, its quality.
A statement for a database is not taken over from the card's contract, since `fedblocks predict` would run it; text
that is not printable is refused, since that would print it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save

from .. import atomic_file
from ..blocks import Denoiser, build_model, metric_of
from ..blocks.model_file import ModelCard, places
from ..blocks.size import parameters_of
from ..blocks.state import State, check_part, digest, state_bytes
from ..errors import FedblocksError, PolicyRefusal, ProtocolError, RunError
from ..protocol import private_file
from ..protocol.messages import DeliverRequest
from ..settings import Plan
from ..settings.contract import DataContract
from .awaited import Awaited
from .company import Company
from .model_folders import MODELS, PUBLIC_FILE, kept_folders
from .readiness import check_room

MOST_MODELS = 64
_INCOMING, _ABOUT, _LOCK = ".incoming", "about.json", ".lock"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LONGEST_TEXT = 2000
# While it is put together: the parts, and what is written of them.
_COPIES = 4
_CONTRACT: TypeAdapter[DataContract] = TypeAdapter(DataContract)


def receive(request: DeliverRequest, awaited: Awaited, company: Company) -> bool:
    """Take one part; whether the whole model is kept now, or was before.

    Raises:
        ProtocolError: "bad_model", it is not this run's; "model_kept", there is another one of this name;
            "wrong_part", out of order; "too_many" or "no_room", a limit of the disk; "denied" since it was joined.
        PolicyRefusal: the model is larger than the company allows.
    """
    plan = awaited.plan
    company.requests.refuse_denied(plan)
    card = checked_card(request.card, plan)
    folder = company.home / MODELS / folder_name(plan.run, awaited.joined)
    with _alone(company.home):
        if os.path.lexists(folder):
            _check_same(folder, card)
            return True
        _check_limits(company, plan)
        if not _take(request, awaited, card, company.home / MODELS / _INCOMING):
            return False
        company.decisions.check()
        _keep(awaited, card, company, folder)
        company.decisions.write("model", run=plan.run, round=card.round, digest=card.digest)
        company.log(f"kept the final model of run {plan.run} in {folder}")
    return True


def folder_name(run: str, joined: bytes) -> str:
    """A run's name where that is a plain one; else one by digest: a plan's may hold any printable character."""
    return run if _PLAIN.fullmatch(run) and run != "awaited" else f"run-{joined.hex()[:16]}"


def checked_card(text: str, plan: Plan) -> ModelCard:
    """The card, if it is of the plan's last round. Raises: ProtocolError("bad_model") naming the field."""
    try:
        card = ModelCard.model_validate_json(text)
        if card.contract is not None:
            _CONTRACT.validate_python(card.contract)
    except (ValidationError, FedblocksError, RecursionError) as error:
        raise ProtocolError("bad_model", f"not the card of a model ({type(error).__name__})") from None
    rounds = plan.training.rounds
    expected = {
        "run": plan.run,
        "plan": plan.digest().hex(),
        "model": plan.model,
        "noise": plan.noise,
        "metric": metric_of(plan.model).name,
        "round": rounds,
        "rounds": rounds,
    }
    for name, value in expected.items():
        if getattr(card, name) != value:
            raise ProtocolError("bad_model", f"the card's {name} is not that of the joined plan")
    if card.quality is not None and not math.isfinite(card.quality):
        raise ProtocolError("bad_model", "the card's quality is no number")
    told = {
        k: v for k, v in (card.contract or {}).items() if k != "separator"
    }  # which may be a tab, and no more
    for said in (card.version, card.guarantee, *(card.labels or ()), *_texts(told)):
        if not said.isprintable() or len(said) > _LONGEST_TEXT:
            raise ProtocolError("bad_model", "the card holds text that is not printable, or too long")
    kept = {k: v for k, v in (card.contract or {}).items() if k not in ("table", "query")}
    return card.model_copy(update={"contract": None if card.contract is None else kept})


def _texts(value: object) -> Iterator[str]:
    """All text within lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _check_same(folder: Path, card: ModelCard) -> None:
    try:
        kept = ModelCard.model_validate_json(places(folder)[1].read_bytes())
    except (OSError, ValidationError):
        raise ProtocolError("model_kept", f"{folder} holds something else: move it away") from None
    if (kept.plan, kept.digest) != (card.plan, card.digest):
        raise ProtocolError("model_kept", f"{folder} holds another model of a run of this name: move it away")


def _check_limits(company: Company, plan: Plan) -> None:
    if (parameters := parameters_of(plan.model)) > company.policy.largest_model:
        text = f"{parameters} parameters, this company allows {company.policy.largest_model}"
        raise PolicyRefusal("largest_model", text)
    if len(kept_folders(company.home)) >= MOST_MODELS:
        raise ProtocolError("too_many", f"{company.home / MODELS} holds {MOST_MODELS} models: remove some")
    check_room(company, _COPIES * state_bytes(_shapes(plan)))


@lru_cache(maxsize=4)
def _shapes(plan: Plan) -> Denoiser:
    """The plan's model without its values: no memory, however large it is."""
    with torch.device("meta"):
        return build_model(plan.model, plan.noise)


def _take(request: DeliverRequest, awaited: Awaited, card: ModelCard, incoming: Path) -> bool:
    """Check a part and put it to the others; whether all are there."""
    model, plan = _shapes(awaited.plan), awaited.plan
    about = {"joined": awaited.joined.hex(), "digest": card.digest, "count": request.count}
    parts = _parts_of(incoming, about)
    names = sorted([f"public-{b}" for b in request.public] + [f"final-{b}" for b in request.final])
    if request.part > len(parts):
        raise ProtocolError("wrong_part", f"part {request.part} came, expected part {len(parts)}")
    if request.part == len(parts):
        if set(names) & {name for part in parts for name in part}:
            raise ProtocolError("bad_model", "a block's state came twice")
        try:
            for b, state in request.public.items():
                _check_block(plan, b)
                check_part(model, state, b)
            for b, state in request.final.items():
                _check_block(plan, b)
                _check_changed(model, state, b, plan)
        except RunError as error:
            raise ProtocolError("bad_model", str(error)) from None
        tensors = {
            name: t for states in (request.public, request.final) for name, t in _named(states, request)
        }
        if not parts:
            shutil.rmtree(incoming, ignore_errors=True)
            incoming.mkdir(mode=0o700)
        private_file.write(incoming / f"{request.part}.safetensors", save(tensors))
        parts = [*parts, names]
        private_file.write(incoming / _ABOUT, json.dumps({**about, "parts": parts}).encode())
    return len(parts) == request.count


def _named(states: Mapping[int, State], request: DeliverRequest) -> Iterator[tuple[str, torch.Tensor]]:
    side = "public" if states is request.public else "final"
    for state in states.values():
        for name, tensor in state.items():
            yield f"{side}/{name}", tensor


def _check_block(plan: Plan, block: int) -> None:
    if block >= plan.model.blocks:
        raise RunError(f"block {block}: the plan has {plan.model.blocks}")


def _check_changed(model: Denoiser, state: State, block: int, plan: Plan) -> None:
    """Refuse what is no tensor that the run trains of the block, or is not finite."""
    own = model.state_dict()
    names = model.trainable(block, plan.training.interface) if block in plan.trained_blocks else []
    trained = {f"blocks.{block}.{name}" for name in names}
    for name, tensor in state.items():
        if name not in trained:
            raise RunError(f"{name}: the run does not train this")
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise RunError(f"{name}: expected {own[name].dtype} of shape {tuple(own[name].shape)}")
        if not torch.isfinite(tensor).all():
            raise RunError(f"{name}: holds values that are not finite")


def _parts_of(incoming: Path, about: Mapping[str, object]) -> list[list[str]]:
    """The parts of this model that have come; none where those that lie there are of another one."""
    try:
        found = json.loads((incoming / _ABOUT).read_bytes())
        parts: list[list[str]] = found.pop("parts")
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    return parts if found == about else []


def _keep(awaited: Awaited, card: ModelCard, company: Company, folder: Path) -> None:
    """Put the parts together, and into their place in one step; they are removed whatever comes of them."""
    incoming = folder.parent / _INCOMING
    try:
        public, final = _parts_read(incoming)
        shared = company.load_shared(awaited.joined)
        try:
            check_part(_shapes(awaited.plan), shared, None)
            for b in range(awaited.plan.model.blocks):
                own = {name: tensor for name, tensor in public.items() if name.startswith(f"blocks.{b}.")}
                check_part(_shapes(awaited.plan), own, b)
        except RunError as error:
            raise ProtocolError("bad_model", str(error)) from None
        if digest(shared) != awaited.shared:
            raise ProtocolError("bad_model", "the shared state here is not the one that was joined")
        whole = shared | public | final
        if digest(whole).hex() != card.digest:
            raise ProtocolError("bad_model", "the tensors are not those of the card: their digest differs")
        before = {name: public[name] for name in final}
        contents = dict(
            zip(places(Path()), (save(whole), card.model_dump_json(indent=2).encode()), strict=True)
        )
        with atomic_file.creating_folder(folder, mode=0o700) as draft:
            for name, content in {**contents, Path(PUBLIC_FILE): save(before)}.items():
                with open(draft / name, "xb", opener=private_file.opener) as file:
                    file.write(content)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _parts_read(incoming: Path) -> tuple[State, State]:
    public: State = {}
    final: State = {}
    for path in incoming.glob("[!.]*.safetensors"):
        for name, tensor in load_file(path).items():
            side, _, own = name.partition("/")
            (public if side == "public" else final)[own] = tensor
    return public, final


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One part at a time, whatever processes Flower starts."""
    (home / MODELS).mkdir(mode=0o700, exist_ok=True)
    with FileLock(home / MODELS / _LOCK, timeout=60.0, mode=0o600, fallback_to_soft=False):
        yield
