"""The company's Flower ClientApp: a handler for each phase of `protocol`, and one for the data plane.

Every handler answers with a fixed code when anything goes wrong: Flower would otherwise send the text of an
exception, which may quote private data, to the coordinator.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ..blocks import Denoiser
from ..blocks.examples import Examples
from ..blocks.pretrained.settings import PretrainedSettings
from ..blocks.state import State, check_part, digest, merge
from ..errors import InputError, LedgerError, PrivacyError, ProtocolError
from ..privacy.composition import Terms
from ..privacy.randomness import Randomness
from ..privacy.secure_aggregation import ChannelKeys, CompanySession, Roster, Session
from ..protocol.evaluation import (
    BITS,
    EVALUATION,
    check_due,
    evaluation_run,
    evaluation_terms,
    is_evaluation,
    settings_of,
)
from ..protocol.messages import (
    EVALUATE,
    JOIN,
    KEYS,
    TRAIN,
    ConfirmReply,
    ConfirmRequest,
    DeliverReply,
    DeliverRequest,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    KeysReply,
    KeysRequest,
    StreamReply,
    StreamRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    refusal,
)
from ..protocol.release import block_label, block_of, block_size, blocks_read, sum_label
from ..protocol.roster import difference
from ..settings import Plan, groups_of, validated_json
from .agent import Agent
from .answer_time import timed
from .approvals import Undecided
from .awaited import Awaited
from .batches import examples_at_once
from .company import Company
from .delivery import receive
from .endpoint import Endpoint, exclusive_agent
from .evaluating import evaluated
from .exposure import SELDOM, jumped, sample, warn
from .joined import SECRETS_AND_DIGESTS, JoinedRun
from .policy import Policy
from .policy_file import know_pretrained
from .predicted_gain import check_not_refused, check_once
from .readiness import data_fingerprint, own_terms, planned_parts, readable_held_out
from .recording import (
    record_answered,
    record_asked,
    record_evaluated,
    record_joined,
    record_refusal,
    record_trained,
)
from .rehearsal import rehearse, rehearse_evaluation
from .training import model_of, train_block, whole_model_of


class CompanyApp(ClientApp):
    """Flower's router, but a message without a handler is answered with a code: Flower would send a text."""

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            return super().__call__(message, context)
        except Exception:  # handlers do not raise
            return Message(refusal(ProtocolError("unknown_message", "no such phase")), reply_to=message)


app = CompanyApp()

Handler = Callable[[Message, Context, Company], RecordDict]


def guarded(handler: Handler) -> Callable[[Message, Context], Message]:
    """Answer with the handler's record, or with a refusal code; the reason goes to the company's log."""

    def answer(message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        try:
            company = Company.of(context)
        except Exception as error:
            return Message(refusal(error), reply_to=message)

        def record() -> RecordDict:
            try:
                company.check_files()
                company.see_policy()
                company.limit_threads()
                return handler(message, context, company)
            except Exception as error:
                if isinstance(error, Undecided) and error.told:  # asked again every few seconds
                    return refusal(error)
                # The text of an error in logging must not be sent either.
                with suppress(OSError, LedgerError):
                    company.log(f"refused {kind}", error=error)
                    record_refusal(company, _run_name(message, context), kind, error)
                return refusal(error)

        # The time of a training or an evaluation depends on the examples, that of a join and of being ready for a
        # round also on the ledger; of the others on messages only. The answer is made after the wait: Flower stores a
        # message's time in it.
        slow = kind in (JOIN, KEYS, TRAIN, EVALUATE)
        seconds = company.policy.answer_seconds if slow else None
        answered, durations = timed(record, seconds)
        if durations > 1:
            with suppress(OSError):
                company.log(f"withheld the answer to {kind}, which took {durations} times answer_seconds")
        return Message(answered, reply_to=message)

    return answer


@app.query("join")
@guarded
def join(message: Message, context: Context, company: Company) -> RecordDict:
    """Check the whole plan against policy and ledger before round one, then hand out a channel key."""
    request = JoinRequest.from_record(message.content)
    record_asked(company, request.plan)
    company.requests.check(request.plan, company.policy)  # reveals nothing of rules or ledger: not counted
    company.count_join(request.plan)
    try:
        return _join(request, context, company)
    except Exception as error:
        # One code for all: which check refused would reveal that those before it passed, the budget's among them.
        raise PrivacyError(f"the plan is refused: {error}") from error


def _join(request: JoinRequest, context: Context, company: Company) -> RecordDict:
    plan = request.plan
    company.policy.check(plan)
    member = company.member()
    model = model_of(plan, company.policy.device, 0)
    terms = own_terms(company, plan)
    # The smallest cohort of a sum; larger ones are rehearsed when they are known.
    fewest = max(plan.secure_aggregation.minimum_cohort, plan.dropouts + plan.colluders + 1)
    rehearse(plan, plan.trained_blocks[0], fewest, company.policy)
    check_part(model, request.shared, None)
    company.policy.check_shared(digest(request.shared))
    if plan.evaluation is not None:
        rehearse_evaluation(plan, fewest, company.policy)
    with company.ledger() as ledger:
        ledger.check_plans([(plan.run, terms), *planned_parts(plan)[1:]])
    company.ready(plan, joining=True)  # last: from here on the run has these data
    joined = request.digest()
    company.save_shared(joined, request.shared)
    company.prefix.forget()  # of the run that was joined before
    channel = ChannelKeys.generate()
    context.state["run"] = ConfigRecord(
        {
            "plan": plan.model_dump_json(),
            "joined": joined,
            "shared": digest(request.shared),
            "channel": channel.to_bytes(),
            "public": channel.public,
            "members": list(member.roster.members),
            "identities": list(member.roster.members.values()),
        }
    )
    # A session that is still open belongs to the run that was joined before: nothing of it may be answered any more.
    context.state.pop("session", None)
    _keep_joined(context, company)
    company.log(f"joined run {plan.run}")
    record_joined(company, plan.run, data_fingerprint(company))
    signed = channel.signed(member, plan.run, joined)
    return JoinReply(company.name, signed, member.roster.members).to_record()


def _keep_joined(context: Context, company: Company) -> None:
    if company.simulated:
        return
    record = _record(context, "run")
    run = {name: _stored(context, "run", name).hex() for name in SECRETS_AND_DIGESTS}
    roster = {name: key.hex() for name, key in company.member().roster.members.items()}
    with company.ledger() as ledger:
        rows, head = len(ledger.rows()), ledger.head()
    kept = {**run, "plan": str(record["plan"]), "roster": roster, "company": company.name}
    company.joined.save(JoinedRun.model_validate({**kept, "rows": rows, "head": head}))
    joined, shared = _stored(context, "run", "joined"), _stored(context, "run", "shared")
    company.awaited.save(Awaited(_parsed_plan(str(record["plan"])), joined, shared))


def _restore_joined(context: Context, company: Company) -> None:
    """After a crash: what the company had joined. A session of that time is gone, with its keys."""
    if company.simulated:
        return
    with company.ledger() as ledger:
        found = company.joined.load(company.name, ledger)
    if found is not None:
        values = {name: bytes.fromhex(getattr(found, name)) for name in SECRETS_AND_DIGESTS}
        run = context.state["run"] = ConfigRecord({"plan": found.plan, **values})
        run["members"] = list(found.roster)
        run["identities"] = [bytes.fromhex(key) for key in found.roster.values()]
        company.log("went on with the run that was joined before this process began")


@app.query("keys")
@guarded
def keys(message: Message, context: Context, company: Company) -> RecordDict:
    """Begin a round's secure sum: fresh keys, shares for every peer."""
    request = KeysRequest.from_record(message.content)
    plan = _plan(context, company)
    session, joined = request.session, _stored(context, "run", "joined")
    if session.run != plan.run or session.settings_digest != joined:
        raise ProtocolError("bad_session", "the session is not of the joined run")
    bits = BITS if is_evaluation(session) else plan.bits
    if session.bits != bits or not 1 <= session.round <= plan.training.rounds:
        raise ProtocolError("bad_session", "the session's bits or round are not the plan's")
    if session.threshold < (plan.threshold(len(session.cohort)) or 0):
        raise ProtocolError("low_threshold", "fewer companies than the plan's shares of noise need")
    channel, member = ChannelKeys.from_bytes(_stored(context, "run", "channel")), company.member()
    _check_same_roster(context, member.roster)
    party = CompanySession.start(
        session, member, channel, request.channels, company.policy.minimum_cohort, plan.colluders
    )
    _check_cohort(company, plan, session)
    _check_ready(context, company, plan, session)
    company.count_session(plan)
    company.steps.take_in_session("begun", channel.public, session.digest())
    _record(context, "run")["channel"] = channel.to_bytes()
    context.state["session"] = ConfigRecord({"session": party.to_bytes()})
    return KeysReply(party.advert()).to_record()


def _check_ready(context: Context, company: Company, plan: Plan, session: Session) -> None:
    """Refuse now what would be refused once others have trained: nobody is charged before all have passed this.

    Of a company that is not ready the coordinator learns the code.
    """
    if is_evaluation(session):
        _check_ready_to_evaluate(context, company, plan, session)
        return
    block, companies = block_of(plan, session), len(session.cohort)
    company.requests.check(plan, company.policy)
    check_not_refused(company.steps, plan)
    data = company.ready(plan)
    rehearse(plan, block, companies, company.policy)
    shared = _stored(context, "run", "shared")
    labels = release_labels(plan, session, session.model_digest, shared, data.digest, company.policy)
    release = _next_release(company, plan, session, labels)
    company.check_steps(plan)
    with company.ledger() as ledger:
        company.decisions.check(len(ledger.rows()))
        ledger.check_release(plan.run, own_terms(company, plan, companies), release)


def _check_ready_to_evaluate(context: Context, company: Company, plan: Plan, session: Session) -> None:
    """As `_check_ready`, of an evaluation."""
    check_due(plan, session)
    company.requests.check(plan, company.policy)
    check_not_refused(company.steps, plan)
    company.ready(plan)
    companies = len(session.cohort)
    rehearse_evaluation(plan, companies, company.policy)
    labels = _evaluation_labels(context, company, plan, session)
    release = _next_release(company, plan, session, labels)
    with company.ledger() as ledger:
        rows = ledger.rows()
        company.decisions.check(len(rows))
        # So training is the first of a plan's two runs in every ledger, as the plan's account has it.
        if all(row.run != plan.run for row in rows):
            raise ProtocolError("not_trained", "this company has not trained in the run")
        ledger.check_release(evaluation_run(plan.run), evaluation_terms(plan, companies), release)


def _next_release(company: Company, plan: Plan, session: Session, labels: tuple[str | int, ...]) -> str:
    """The id under which the session's release would be charged now."""
    if company.simulated:
        return company.randomness(*labels)[0]
    again, label = not plan.secure_step, block_label(session.label)
    return company.releases.id_for(plan.run, session.round, label, labels, again=again)


@app.train("block")
@guarded
def train(message: Message, context: Context, company: Company) -> RecordDict:
    """Charge the ledger, train the block, mask the update."""
    request = TrainRequest.from_record(message.content)
    plan, party = _joined(context, company, charged=False)
    session = party.session
    if block_of(plan, session) != request.block:
        raise ProtocolError("wrong_session", "the session is for another block")
    # Everything that can be refused is refused before the ledger is charged. Afterwards only the masked update may
    # depend on the data.
    companies = len(session.cohort)
    rehearse(plan, request.block, companies, company.policy)
    model = model_of(plan, company.policy.device, request.block)
    shared_state = company.load_shared(_stored(context, "run", "joined"))
    received, shared = _same_model(context, session, request.states, shared_state)
    if list(request.states) != list(blocks_read(plan, request.block)):
        raise ProtocolError("wrong_session", "not the block states that this plan's blocks read")
    for b, state in request.states.items():
        check_part(model, state, b)
    merge(model, shared_state, *request.states.values())
    if session.length != block_size(model, request.block, plan.training):
        raise ProtocolError("wrong_session", "the session is for updates of another length")
    party.check_adverts(request.adverts)
    terms = own_terms(company, plan, companies)
    data = company.ready(plan)
    if (limit := company.policy.largest_predicted_gain) is not None:
        check_once(company.steps, limit, model, request.block, data, plan)
    _take("trained", context, company, party)
    labels = release_labels(plan, session, received, shared, data.digest, company.policy)

    def trained(randomness: Randomness) -> npt.NDArray[np.uint32]:
        company.count_round()
        company.count_steps(plan)
        _watch(context, company, model, request, data, plan)
        policy, block = company.policy, request.block
        with company.prefix.before(model, block, data, plan) as before:
            return train_block(model, block, data, plan, companies, randomness, policy, before)

    residues = _released(company, plan, session, labels, (plan.run, terms), trained)
    masked = party.mask(residues, request.adverts)
    context.state["session"] = ConfigRecord({"session": party.to_bytes()})
    company.log(f"trained {sum_label(request.block)} in round {session.round}")
    record_trained(company, session, masked)
    return TrainReply(masked).to_record()


@app.evaluate("model")
@guarded
def evaluate(message: Message, context: Context, company: Company) -> RecordDict:
    """Charge the ledger, judge the model on the held-out examples, mask the sums."""
    request = EvaluateRequest.from_record(message.content)
    plan, party = _joined(context, company, charged=False)
    session = party.session
    if not is_evaluation(session):
        raise ProtocolError("wrong_session", "the session is no evaluation's")
    check_due(plan, session)
    # As in a training: what can be refused is refused before the charge.
    companies = len(session.cohort)
    rehearse_evaluation(plan, companies, company.policy)
    model = whole_model_of(plan, company.policy.device)
    shared_state = company.load_shared(_stored(context, "run", "joined"))
    _same_model(context, session, request.states, shared_state)
    if len(request.states) != plan.model.blocks:
        raise ProtocolError("wrong_session", "not the states of all blocks")
    for b, state in request.states.items():
        check_part(model, state, b)
    merge(model, shared_state, *request.states.values())
    party.check_adverts(request.adverts)
    company.ready(plan)
    held_out = readable_held_out(company)
    _take("trained", context, company, party)
    labels = _evaluation_labels(context, company, plan, session)
    residues = _released(
        company, plan, session, labels, (evaluation_run(plan.run), evaluation_terms(plan, companies)),
        lambda randomness: evaluated(model, held_out, plan, companies, randomness),
    )  # fmt: skip
    masked = party.mask(residues, request.adverts)
    context.state["session"] = ConfigRecord({"session": party.to_bytes()})
    company.log(f"evaluated the model after round {session.round}")
    record_evaluated(company, session, masked)
    return TrainReply(masked).to_record()


def _same_model(
    context: Context, session: Session, states: dict[int, State], shared: State
) -> tuple[bytes, bytes]:
    """The digests of block states and shared state, if they are those of the session and of the joined run."""
    received, joined = digest(*states.values()), digest(shared)
    if received != session.model_digest or joined != _stored(context, "run", "shared"):
        raise ProtocolError("wrong_session", "the model received is not the one the session is for")
    return received, joined


def _released(
    company: Company,
    plan: Plan,
    session: Session,
    labels: tuple[str | int, ...],
    charged: tuple[str, Terms],
    make: Callable[[Randomness], npt.NDArray[np.uint32]],
) -> npt.NDArray[np.uint32]:
    """The residues of the session's release, charged before they are made; `charged`: run and terms in the ledger."""
    label, (run, terms) = block_label(session.label), charged

    def charge(release: str) -> None:
        with company.ledger() as ledger:
            # What a crash has left, so that another one leaves no more.
            company.decisions.charged(ledger.rows())
            ledger.charge(run=run, round=session.round, block=label, release_id=release, terms=terms)
            company.decisions.charged(ledger.rows())

    if company.simulated:
        release, randomness = company.randomness(*labels)
        charge(release)
        return make(randomness)
    return company.releases.make(
        plan.run, session.round, label, labels, again=not plan.secure_step, charge=charge,
        train=lambda: make(Randomness.from_entropy()),
    )  # fmt: skip


@app.query("confirm")
@guarded
def confirm(message: Message, context: Context, company: Company) -> RecordDict:
    """Sign one set of survivors, if the company's own rules allow the set."""
    request = ConfirmRequest.from_record(message.content)
    _, party = _joined(context, company)
    confirmation = party.confirm(request.survivors)
    _take("confirmed", context, company, party, value=request.survivors.to_bytes(), code="second_set")
    context.state["session"] = ConfigRecord({"session": party.to_bytes()})
    return ConfirmReply(confirmation).to_record()


@app.query("unmask")
@guarded
def unmask(message: Message, context: Context, company: Company) -> RecordDict:
    """Send the shares that open this round's sum, once, for the set that enough survivors have signed."""
    request = UnmaskRequest.from_record(message.content)
    _, party = _joined(context, company)
    shares = party.unmask(request.confirmations)
    _take("answered", context, company, party)
    company.releases.spend(party.session.run, party.session.round, block_label(party.session.label))
    context.state["session"] = ConfigRecord({"session": party.to_bytes()})
    record_answered(company, party.session, shares.to_bytes())
    return UnmaskReply(shares).to_record()


@app.query("deliver")
@guarded
def deliver(message: Message, context: Context, company: Company) -> RecordDict:
    """Take a part of the final model of a run that this company has joined."""
    request = DeliverRequest.from_record(message.content)
    awaited = _awaited(context, company, request.joined)
    if isinstance(awaited.plan.model, PretrainedSettings):
        know_pretrained(company.home)  # it may come days after this process has seen a plan
    kept = receive(request, awaited, company)
    if kept and company.joined.run() == awaited.plan.run:
        company.prefix.forget()  # the run is over, which over Flower alone nothing else tells
    return DeliverReply(kept).to_record()


def _awaited(context: Context, company: Company, joined: bytes) -> Awaited:
    """What was joined under this digest, in this process or, by a company with a life of its own, at any time."""
    record = _record(context, "run")
    plan, shared = record.get("plan"), record.get("shared")
    if record.get("joined") == joined and isinstance(plan, str) and isinstance(shared, bytes):
        return Awaited(_parsed_plan(plan), joined, shared)
    found = None if company.simulated else company.awaited.find(joined)
    if found is None:
        raise ProtocolError("not_awaited", "this company has not joined the run, or it is too long ago")
    return found


@app.query("stream")
@guarded
def stream(message: Message, context: Context, company: Company) -> RecordDict:
    """Answer this run's messages over the company's data plane, until its end: one message for the whole run."""
    request = StreamRequest.from_record(message.content)
    if not Endpoint.configured(company.home):
        raise ProtocolError("no_data_plane", "this company has not set up a data plane")
    with exclusive_agent(company.home):
        agent = Agent(
            Endpoint.of(company.home), app, context, request.run, wait=request.wait, log=company.log
        )
        ended = agent.serve()
        if ended == "done":
            company.leave(request.run, channel_of(context))
        return StreamReply(ended, agent.answered).to_record()


# Fields on which no bit of a release depends. All others, and so every new one, enter the label of the noise.
_PLAN_BESIDE: dict[str, Any] = {
    "run": True,
    "delta": True,
    "drawn": True,
    "training": {
        "rounds", "assignment", "server_optimizer", "server_learning_rate", "server_betas", "evaluate_every",
        "message_timeout", "reserve",
    },
    "secure_aggregation": {"minimum_cohort", "threshold"},
    "evaluation": True,
}  # fmt: skip
_POLICY_BESIDE = {
    "epsilon_ceiling", "delta", "minimum_cohort", "minimum_noise_multiplier", "largest_model", "most_steps",
    "allow_interface", "i_accept_no_dp", "allow_shared_noise", "least_colluders", "composition", "most_joins",
    "most_new_plans", "answer_seconds", "epsilon_ceiling_run", "epsilon_ceiling_year", "plans", "shared_states",
    "most_rounds_a_day", "most_attempts", "hours", "zone", "approval", "largest_predicted_gain", "group",
    "pretrained", "prefix_cache_mb",
}  # fmt: skip


def release_labels(
    plan: Plan, session: Session, block: bytes, shared: bytes, data: bytes, policy: Policy
) -> tuple[str | int, ...]:
    """Everything that a seeded release depends on: if any of it differs, so does the noise.

    And nothing else, so that two simulations which differ only in logging or length make the same releases. `block`
    is the digest of the received states, `shared` that of the shared state, `data` that of the examples.
    """
    beside = _POLICY_BESIDE if policy.threads is not None else _POLICY_BESIDE | {"threads"}
    terms = (plan.model_dump_json(exclude=_PLAN_BESIDE), policy.model_dump_json(exclude=beside))
    parts = (block, shared, data)
    digests = [hashlib.sha256(text.encode()).digest() for text in terms]
    return (
        session.round,
        block_label(session.label),
        len(session.cohort),
        *(part.hex() for part in (*digests, *parts)),
    )


def _evaluation_labels(
    context: Context, company: Company, plan: Plan, session: Session
) -> tuple[str | int, ...]:
    """`release_labels` of an evaluation: it depends on the held-out examples, and on how they are judged."""
    held_out, shared = readable_held_out(company), _stored(context, "run", "shared")
    data = b"" if held_out is None else held_out.digest
    found = release_labels(plan, session, session.model_digest, shared, data, company.policy)
    return EVALUATION, settings_of(plan).model_dump_json(), *found


def _plan(context: Context, company: Company) -> Plan:
    """The joined plan, if the company's rules, which may have changed since, still allow it."""
    if "run" not in context.state:
        _restore_joined(context, company)
    value = _record(context, "run").get("plan")
    if not isinstance(value, str):
        raise ProtocolError("wrong_phase", "this company has not joined the run")
    plan = _parsed_plan(value)
    company.policy.check(plan)
    company.policy.check_shared(_stored(context, "run", "shared"))
    return plan


def _run_name(message: Message, context: Context) -> str:
    """The run that a message is about, as far as it shows; for the company's own record."""
    with suppress(Exception):
        if message.metadata.message_type == JOIN:
            return JoinRequest.from_record(message.content).plan.run
        return _parsed_plan(str(_record(context, "run")["plan"])).run
    return ""


def _check_same_roster(context: Context, roster: Roster) -> None:
    """ProtocolError for a roster that was installed since the run was joined: under it no signature is valid."""
    record = _record(context, "run")
    names, keys = record.get("members"), record.get("identities")
    if not isinstance(names, list) or not isinstance(keys, list):
        raise ProtocolError("wrong_phase", "this company has not joined the run")
    joined = {str(name): key for name, key in zip(names, keys, strict=True) if isinstance(key, bytes)}
    changed = difference(dict(roster.members), joined, of_own="the new one", of_other="the old one")
    if changed:
        text = f"another roster was installed since the run was joined ({changed}): the run has to begin anew"
        raise ProtocolError("roster_differs", text)


@lru_cache(maxsize=8)
def _parsed_plan(text: str) -> Plan:
    try:
        return validated_json(Plan, text)
    except InputError as error:
        raise ProtocolError("malformed", str(error)) from None


def _joined(context: Context, company: Company, *, charged: bool = True) -> tuple[Plan, CompanySession]:
    """The plan and the open session, both checked against the company's current rules.

    `charged`: the round's training has been charged, so the ledger is checked here; else its charge will check it.
    """
    plan, stored = _plan(context, company), _stored(context, "session", "session")
    party = CompanySession.from_bytes(stored, company.member(), company.policy.minimum_cohort)
    if charged:
        with company.ledger() as ledger:  # opened to check whether the record of steps is an older copy
            company.decisions.check(len(ledger.rows()))  # which of few rows the decisions tell alone
    _check_cohort(company, plan, party.session)
    return plan, party


def _watch(
    context: Context, company: Company, model: Denoiser, request: TrainRequest, data: Examples, plan: Plan
) -> None:
    """Warn the company, in its own log, where one of its examples owns a parameter row; see `exposure`.

    Not one that is drawn, which is invented: with few rounds a company this would cost as much as training.
    """
    if plan.drawn is not None:
        return
    run, block = _record(context, "run"), request.block
    try:
        seed, before = run.get("sample"), run.get(f"sample-{block}")
        if not isinstance(seed, int):
            seed = run["sample"] = secrets.randbits(62)
        now = sample(request.states[block], seed)
        if (
            isinstance(before, list)
            and not jumped([float(part) for part in before], now)
            and secrets.randbelow(SELDOM)
        ):
            return
        # Of the state that is looked at: small steps from there add up to a jump.
        run[f"sample-{block}"] = now
        at_once = examples_at_once(model, block, plan, company.policy)
        warn(company.log, model, block, data, plan, examples=at_once)
    except Exception as error:  # the release has been charged, and does not depend on this
        company.log(f"could not count the rows that one example of block {block} owns", error=error)


def _check_cohort(company: Company, plan: Plan, session: Session) -> None:
    """Allow only the cohort that was settled when the run was joined, or with the first session after it."""
    if plan.drawn is None:
        _only_cohort(company, session)
        return
    # Only invented companies come here: see `Policy.broken`.
    drawn = plan.drawn.cohort(session.round, company.member().roster.members)
    count = 1
    if plan.training.assignment == "parallel":
        count = groups_of(len(drawn), len(plan.trained_blocks), plan.secure_aggregation.minimum_cohort)
    if session.cohort not in [drawn[g::count] for g in range(count)]:
        raise ProtocolError("bad_session", "not the cohort that the plan draws for this round")
    cohort, step = json.dumps(session.cohort).encode(), (session.run.encode(), str(session.round))
    company.steps.take("cohort", *step, value=cohort, code="bad_session")


def _only_cohort(company: Company, session: Session) -> None:
    """Allow only a run's first cohort, since the difference of two cohorts' sums could isolate one company; a run
    some of whose steps are lost has none."""
    cohort = json.dumps(session.cohort).encode()
    company.steps.take("cohort", session.run.encode(), value=cohort, code="bad_session")


def _take(step: str, context: Context, company: Company, party: CompanySession, **named: Any) -> None:
    """Record a step of the open session in the company's home, before its answer leaves."""
    company.steps.take_in_session(step, _stored(context, "run", "public"), party.session.digest(), **named)


def _record(context: Context, name: str) -> ConfigRecord:
    found = context.state.get(name)
    return found if isinstance(found, ConfigRecord) else ConfigRecord()


def channel_of(context: Context) -> bytes | None:
    """The public channel key with which a run was joined; none if none was."""
    value = _record(context, "run").get("public")
    return value if isinstance(value, bytes) else None


def _stored(context: Context, record: str, name: str) -> bytes:
    value = _record(context, record).get(name)
    if not isinstance(value, bytes):
        raise ProtocolError("wrong_phase", f"no {record} has begun")
    return value
