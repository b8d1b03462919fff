"""The final model goes to every company that has joined: what the run was for.

After the last round, and again when a run that is over is resumed, for those that were missing then. A company that
is away costs its own copy and a bounded wait. `delivered.json` in the run's folder says who has the model, so each
gets it once. Only what a company does not have travels: of each block its state of round 0 and the tensors that have
changed since, in messages of about PART_BYTES; the shared part came with the join.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from ..blocks.state import State
from ..protocol.messages import DELIVER, DeliverReply, DeliverRequest
from .checkpoint import Checkpoint
from .cohort import Cohort
from .grid import names_of
from .models import card_of
from .run_folder import RunFolder

log = logging.getLogger("fedblocks.run")

DELIVERED_FILE = "delivered.json"
PART_BYTES = 32 << 20
# Not a training's: a company checks and writes a part, and one that hangs must not hold up the end of the run.
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Delivery:
    """What came of it: who has the model, now or from before, and why others have not: company -> code."""

    has: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


def deliver(grid: Grid, run: RunFolder, cohort: Cohort, *, wait: float, poll: float = 0.2) -> Delivery:
    """Send the model of the last round to every company of the cohort that has not got it.

    `wait`: seconds for those that are not connected.
    """
    requests, digest = parts_of(run, cohort.settings_digest)
    told = run.read_json(DELIVERED_FILE) or {}
    has = set(told.get("companies", ())) if told.get("digest") == digest else set()
    failed: dict[str, str] = {}
    # Nodes that nobody has a name for, as after a restart under Flower; and which of them have the model.
    strangers, unnamed = set[int](), set[str]()
    deadline = time.monotonic() + wait
    while missing := set(cohort.companies) - has:
        here, unknown = _present(grid, cohort, missing - failed.keys())
        nodes = here | {f"node {node}": node for node in unknown - strangers}
        if nodes:
            got, refused = _send(replace(cohort, nodes=nodes), nodes, requests)
            strangers |= unknown
            # Who was cut off may come back.
            failed |= {name: code for name, code in refused.items() if code != "no_reply"}
            has |= got & missing
            unnamed |= got - missing
            if len(unnamed) >= len(missing):
                has |= missing
            run.write_json(DELIVERED_FILE, {"digest": digest, "companies": sorted(has)})
            if got:
                log.info("the final model is with %s", ", ".join(sorted(got)))
        left = set(cohort.companies) - has - failed.keys()
        if len(left) <= len(strangers) or time.monotonic() >= deadline:
            break
        time.sleep(poll)
    return Delivery(
        tuple(sorted(has)),
        {name: failed.get(name, "no_reply") for name in cohort.companies if name not in has},
    )


def _present(grid: Grid, cohort: Cohort, wanted: Collection[str]) -> tuple[dict[str, int], set[int]]:
    """The nodes of the wanted companies that are connected, and those of nobody knows whom."""
    names = names_of(grid)
    known = {name: node for node, name in names.items() if name in cohort.channels} or cohort.nodes
    online = set(grid.get_node_ids())
    here = {name: node for name, node in known.items() if name in wanted and node in online}
    unknown = set() if names or cohort.nodes else online
    return here, unknown


def _send(
    cohort: Cohort, companies: Collection[str], requests: list[RecordDict]
) -> tuple[set[str], dict[str, str]]:
    """All parts to these companies, one after the other; who has it all, and the codes of those who have not."""
    left, got = set(companies), set[str]()
    failed: dict[str, str] = {}
    quick = replace(cohort, timeout=min(cohort.timeout, _ANSWER_SECONDS))
    for request in requests:
        if not left:
            break
        answers, failures = quick.ask(
            DELIVER, "deliver", dict.fromkeys(sorted(left), request), DeliverReply.from_record
        )
        failed |= failures
        got |= {name for name, answer in answers.items() if answer.kept}
        left -= failures.keys() | got
    return got, failed | dict.fromkeys(left, "no_reply")


def parts_of(run: RunFolder, joined: bytes) -> tuple[list[RecordDict], str]:
    """The messages of a run's last model, and its digest: every block's public state and what has changed, in order.

    `joined`: as in `DeliverRequest`.
    """
    checkpoint, card = card_of(run)
    public = Checkpoint.load(run.checkpoints, 0).model
    states: list[tuple[str, int, State]] = []
    for b, (before, after) in enumerate(zip(public.blocks, checkpoint.model.blocks, strict=True)):
        states += [("public", b, before), ("final", b, _changed(before, after))]
    packed = list(_packed([each for each in states if each[2]]))
    text, count = card.model_dump_json(), len(packed)
    records = []
    for i, part in enumerate(packed):
        public_states, final_states = (_of_side(part, side) for side in ("public", "final"))
        records.append(DeliverRequest(joined, text, i, count, public_states, final_states).to_record())
    return records, card.digest


def _of_side(part: list[tuple[str, int, State]], side: str) -> dict[int, State]:
    return {b: state for name, b, state in part if name == side}


def _changed(before: State, after: State) -> State:
    return {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def _packed(states: list[tuple[str, int, State]]) -> Iterator[list[tuple[str, int, State]]]:
    """Neighbours together, up to PART_BYTES; a larger state has a part of its own, as a training's message has."""
    part: list[tuple[str, int, State]] = []
    size = 0
    for each in states:
        more = sum(tensor.numel() * tensor.element_size() for tensor in each[2].values())
        if part and size + more > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += more
    if part:
        yield part
