"""A Flower ServerApp that attacks: it asks every company for two sets of survivors at the same time, and then for its
shares under both.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedblocks.blocks import digest
from fedblocks.client.protocol import (
    CONFIRM,
    KEYS,
    TRAIN,
    UNMASK,
    ConfirmReply,
    ConfirmRequest,
    KeysReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    refused,
)
from fedblocks.privacy.secure_aggregation import Confirmations, Session, Survivors
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.cohort import Absences, join
from fedblocks.server.run_folder import RunFolder

coordinator = ServerApp()


@coordinator.main()
def main(grid: Grid, context: Context) -> None:
    """Writes to `out` how many companies signed both sets, how many gave shares for both, and the codes met."""
    run = RunFolder.existing(Path(str(context.run_config["run-dir"])))
    plan, model = run.plan(), Checkpoint.load(run.checkpoints).model
    cohort = join(grid, plan, model.shared, run.roster(), 4)
    names = cohort.companies
    session = Session(
        run=plan.run, round=1, label="block-0", model_digest=digest(model.blocks[0]),
        settings_digest=cohort.settings_digest, cohort=names, threshold=3,
        length=sum(v.numel() for name, v in model.blocks[0].items() if ".layers." in name), bits=plan.bits,
    )  # fmt: skip
    none = Absences()
    everyone = dict.fromkeys(names, KeysRequest(session, dict(cohort.channels)).to_record())
    adverts = {
        company: reply.advert
        for company, reply in cohort.ask(KEYS, "keys", everyone, KeysReply.from_record, none).items()
    }
    orders = {
        company: TrainRequest(
            0, {0: model.blocks[0]}, {peer: advert.for_recipient(company) for peer, advert in adverts.items()}
        ).to_record()
        for company in names
    }
    assert len(cohort.ask(TRAIN, "train", orders, TrainReply.from_record, none)) == 4, none.why

    # The last company is in one set and out of the other: seeds from the one, keys from the other.
    sets = [names, names[:3]]
    shown = [ConfirmRequest(Survivors(session=session.digest(), names=each)).to_record() for each in sets]
    signed = _both(grid, cohort.nodes, CONFIRM, [dict.fromkeys(names[:3], record) for record in shown])
    signatures = [
        {company: ConfirmReply.from_record(record).confirmation.signature for company, record in each.items()}
        for each in signed.answers
    ]
    proofs = [Confirmations(session=session.digest(), signatures=each) for each in signatures]
    opened = _both(
        grid, cohort.nodes, UNMASK,
        [dict.fromkeys(names[:3], UnmaskRequest(proof).to_record()) for proof in proofs],
    )  # fmt: skip
    for record in (record for each in opened.answers for record in each.values()):
        UnmaskReply.from_record(record)
    result = {
        "signed_both": len(signatures[0].keys() & signatures[1].keys()),
        "opened_both": len(opened.answers[0].keys() & opened.answers[1].keys()),
        "codes": sorted(set(signed.codes + opened.codes)),
    }
    Path(str(context.run_config["out"])).write_text(json.dumps(result), "utf-8")


class _Replies:
    def __init__(self, of: int) -> None:
        self.answers: list[dict[str, RecordDict]] = [{} for _ in range(of)]
        self.codes: list[str] = []


def _both(grid: Grid, nodes: dict[str, int], phase: str, orders: list[dict[str, RecordDict]]) -> _Replies:
    """All orders in one push: nobody has answered the first when the second is there."""
    messages = [
        Message(record, nodes[company], phase, group_id=str(place), ttl=60.0)
        for company in orders[0]
        for place, record in enumerate(order[company] for order in orders if company in order)
    ]
    places = dict(zip(grid.push_messages(messages), messages, strict=True))
    replies = _Replies(len(orders))
    while places:
        for reply in grid.pull_messages(list(places)):
            asked = places.pop(reply.metadata.reply_to_message_id)
            company = next(name for name, node in nodes.items() if node == asked.metadata.dst_node_id)
            code = "failed" if reply.has_error() else refused(reply.content)
            if code is None:
                replies.answers[int(asked.metadata.group_id)][company] = reply.content
            else:
                replies.codes.append(code)
    return replies
