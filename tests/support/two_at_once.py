"""A Flower ServerApp that attacks: it asks every company for two sets of survivors at the same time, and then for its
shares under both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedblocks.blocks import digest
from fedblocks.privacy.secure_aggregation import Confirmations, Session, Survivors
from fedblocks.protocol.messages import (
    CONFIRM,
    UNMASK,
    ConfirmReply,
    ConfirmRequest,
    UnmaskReply,
    UnmaskRequest,
    refused,
)
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.cohort import join
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.secure_sum import Absences, SecureSum

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
    # Up to here the sum is an honest one.
    none = Absences()
    secure_sum = SecureSum(session, cohort, "honest", none)
    survivors = secure_sum.train(0, {0: model.blocks[0]}, secure_sum.keys())
    assert survivors.names == names, none.why

    # The last company is in one set and out of the other: seeds from the one, keys from the other.
    sets = [names, names[:3]]
    shown = [ConfirmRequest(Survivors(session=session.digest(), names=each)).to_record() for each in sets]
    signed, first_codes = _both(
        grid, cohort.nodes, CONFIRM, [dict.fromkeys(names[:3], record) for record in shown]
    )
    signatures = [
        {company: ConfirmReply.from_record(record).confirmation.signature for company, record in each.items()}
        for each in signed
    ]
    proofs = [Confirmations(session=session.digest(), signatures=each) for each in signatures]
    proven = [UnmaskRequest(proof).to_record() for proof in proofs]
    opened, last_codes = _both(
        grid, cohort.nodes, UNMASK, [dict.fromkeys(names[:3], record) for record in proven]
    )
    for record in (record for each in opened for record in each.values()):
        UnmaskReply.from_record(record)
    result = {
        "signed_both": len(signatures[0].keys() & signatures[1].keys()),
        "opened_both": len(opened[0].keys() & opened[1].keys()),
        "codes": sorted(set(first_codes + last_codes)),
    }
    Path(str(context.run_config["out"])).write_text(json.dumps(result), "utf-8")


def _both(
    grid: Grid, nodes: Mapping[str, int], phase: str, orders: list[dict[str, RecordDict]]
) -> tuple[list[dict[str, RecordDict]], list[str]]:
    """All orders in one push, so that none is answered before all are there; answers, and codes of refusals."""
    names = {node: company for company, node in nodes.items()}
    messages = [
        Message(order[company], nodes[company], phase, group_id=str(place), ttl=60.0)
        for company in orders[0]
        for place, order in enumerate(orders)
    ]
    places = dict(zip(grid.push_messages(messages), messages, strict=True))
    answers: list[dict[str, RecordDict]] = [{} for _ in orders]
    codes: list[str] = []
    while places:
        for reply in grid.pull_messages(list(places)):
            asked = places.pop(reply.metadata.reply_to_message_id)
            code = "failed" if reply.has_error() else refused(reply.content)
            if code is None:
                answers[int(asked.metadata.group_id)][names[asked.metadata.dst_node_id]] = reply.content
            else:
                codes.append(code)
    return answers, codes
