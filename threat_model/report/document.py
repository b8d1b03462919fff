"""The report as data, with a published schema: what `fedblocks report --json` prints, and the page is filled from.

Every number that the page's text shows is a field here, so that one thing has one number. A figure that JSON has no
number for (an infinite epsilon) is null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...server.representation import Representation

Ending = Literal["passed", "failed", "open"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(Part):
    """One of the questions that a verdict rests on. `good` null: open, somebody has to decide. `caution`: good by the
    gate's limits, and still something that whoever signs must know."""

    good: bool | None
    topic: str
    text: str
    caution: bool = False


class Verdict(Part):
    """`failed` where a reason is bad, else `open` where one is open, else `passed`."""

    ending: Ending
    reasons: tuple[Reason, ...]

    @property
    def sentence(self) -> str:
        bad = [r for r in self.reasons if r.good is False]
        unclear = [r for r in self.reasons if r.good is None]
        if bad:
            return "Do not approve as it stands: " + "; ".join(r.topic for r in bad) + "."
        if unclear:
            return "Not to be decided without a person: " + "; ".join(r.topic for r in unclear) + "."
        with_care = [r for r in self.reasons if r.caution]
        told = f"The run keeps to all {len(self.reasons)} limits of the gate"
        if with_care:
            told += ". To be weighed before signing: " + "; ".join(r.topic for r in with_care)
        return f"{told}."


class GroupOfExamples(Part):
    """What the promise is for so many examples of one person in one company; null: none is known."""

    examples: int
    epsilon: float | None


class Promise(Part):
    """The guarantee, with everything that gives it a meaning. `certainty`: the most that a test of even odds can be
    right by the promise alone. `examples`: the fewest and the most of a company, where they are known here."""

    private: bool
    epsilon: float | None
    epsilon_against_company: float | None
    delta: float
    unit: str
    adjacency: str
    against: str
    certainty: float | None
    examples: tuple[int, int] | None
    delta_times_examples: float | None
    groups: tuple[GroupOfExamples, ...]
    judgement: str
    delta_judgement: str
    mechanisms: tuple[str, ...]
    trust: tuple[str, ...]


class Account(Part):
    """The ledgers of companies whose figures are all the same. `second_low`, `second_high`: a second accountant's
    bounds of `epsilon`; null where it has none from that side."""

    companies: tuple[str, ...]
    epsilon: float | None
    epsilon_against_company: float | None
    ceiling: float
    delta: float
    releases: int
    releases_of_other_runs: int
    accountant: str
    second: str
    second_low: float | None
    second_high: float | None
    agrees: bool | None


class AttackAnswer(Part):
    """The strongest answer to one of an officer's questions. `value`, `low`, `high`: in `unit`, the interval at
    `level`, of `n` cases; `tests`: of how many results it is the strongest."""

    question: str
    answer: str
    could: bool | None
    attack: str
    adversary: str
    view: str
    block: int | None
    unit: str
    value: float | None
    low: float | None
    high: float | None
    level: float | None
    n: int | None
    tests: int


class HitsAt(Part):
    """Members found at a rate of false alarms; null where there were too few others for that rate."""

    rate: float
    hits: float | None
    low: float | None
    high: float | None
    others: int


class Roc(Part):
    """Membership of one attack, view and block, from its stored scores."""

    attack: str
    view: str
    block: int
    area: float
    low: float
    high: float
    members: int
    others: int
    at: tuple[HitsAt, ...]


class SubgroupQuality(Part):
    """Quality of one company's or class's examples before and after. `low`, `high`: of `after` at 95%, of shares
    alone. `change_low`, `change_high`: of after - before at 95%; null where there are too few examples for one.
    `lost`: the whole interval of the change is for the worse."""

    name: str
    examples: int
    before: float
    after: float
    low: float | None
    high: float | None
    change_low: float | None
    change_high: float | None
    lost: bool


class Subgroups(Part):
    """`worst_decile`: the quality that nine in ten of the groups reach; `worst_decile_before`: of the public model
    there."""

    of: Literal["company", "class"]
    data: str
    groups: tuple[SubgroupQuality, ...]
    worst_decile: float
    worst_decile_before: float


class PersonalQuality(Part):
    """Quality on one company's own held-out examples: of the common model, and with its own parts over it."""

    company: str
    examples: int
    common: float | None
    personal: float | None


class Personal(Part):
    """What companies have for themselves beside the common model, and what it is worth to each of them."""

    part: Literal["head", "adapter"]
    companies: tuple[PersonalQuality, ...]


class Quality(Part):
    """The run's metric. `by_block`: after each block, in the first and in the last round. `personal`: null where
    companies have no parts of their own, or none are known here."""

    metric: str
    unit: str
    higher_is_better: bool
    data: str
    examples: int
    round: int
    before: float
    after: float
    low: float | None
    high: float | None
    public_before: float | None
    public_after: float | None
    public_examples: int
    non_private: float | None
    by_block: tuple[tuple[float, float], ...]
    subgroups: tuple[Subgroups, ...]
    personal: Personal | None


class Costs(Part):
    """Bytes are those of updates and states as they travel, without transport; null: not known here."""

    rounds: int
    seconds: float | None
    seconds_a_round: float | None
    audit_seconds: float | None
    parameters: int
    bytes_up_a_company: int
    bytes_down_a_company: int
    bytes_all_companies: int


class Adapted(Part):
    """A pretrained model: its name, what of it trains and travels. `digest`: of the converted model, in plan and
    policies; `source`: of the checkpoint's files. `trained_values`, `pinned_values`: of a block;
    `bytes_down_a_round`: at most; shares are of the checkpoint's bytes, `model_bytes`."""

    name: str
    architecture: str
    digest: str
    source: str
    trains: str
    objective: str
    blocks: tuple[int, ...]
    of_blocks: int
    trained_values: int
    pinned_values: int
    model_bytes: int
    bytes_up_a_round: int
    bytes_down_a_round: int
    share_up: float
    share_down: float


class CrossCheck(Part):
    """Two sources of this report for one thing."""

    what: str
    one: str
    other: str
    agrees: bool


class Digest(Part):
    of: str
    sha256: str


class Question(Part):
    """A question of NIST SP 800-226, with its answer and the section of this page that says more."""

    about: str
    question: str
    answer: str
    section: str


class FrontierAttack(Part):
    """The strongest result of an audit, of one kind; `value`, `low`, `high`: over the seeds, `audits` of them, in
    `unfinished` of which its time ran out."""

    statement: str
    attack: str
    adversary: str
    view: str
    statistic: str
    unit: str
    value: float
    low: float | None
    high: float | None
    audits: int
    unfinished: int
    worst: float
    worst_low: float
    worst_high: float
    n: int
    baseline: float | None
    of: int


class FrontierPoint(Part):
    """One setting over its seeds. `low`, `high`: of the mean at 95%; null for one seed. `better_than_alone`:
    companies, over the seeds, that are better off than alone, and of how many."""

    setting: str
    kind: Literal["private", "without noise", "pooled", "alone", "public"]
    epsilon: float | None
    epsilon_spent: float | None
    quality: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    failed: int
    better_than_alone: tuple[int, int] | None
    attacks: tuple[FrontierAttack, ...]


class Frontier(Part):
    """Utility against epsilon and against attacks, over the cells of a sweep that have ended."""

    sweep: str
    metric: str
    unit: str
    higher_is_better: bool
    cells: int
    command: str
    points: tuple[FrontierPoint, ...]


class Section(Part):
    """A section of the page by the anchor that links lead to, with what it comes to in one line. `attention`:
    somebody should look at it before the run is used."""

    anchor: str
    number: int
    name: str
    finding: str
    attention: bool


class Report(Part):
    """The whole report of one run. `frontier`: of the sweep that it is a cell of."""

    kind: Literal["run"] = "run"
    format: Literal[1] = 1
    version: str
    run: str
    name: str
    simulated: bool
    finished: bool
    rounds: int
    rounds_done: int
    companies: int
    left: tuple[str, ...]
    verdict: Verdict
    promise: Promise
    accounts: tuple[Account, ...]
    audit: Literal["passed", "failed", "inconclusive", "none"]
    attackers: tuple[AttackAnswer, ...]
    not_tested: tuple[str, ...]
    membership: tuple[Roc, ...]
    quality: Quality | None
    adapted: Adapted | None
    representation: Representation | None
    frontier: Frontier | None
    costs: Costs
    checks: tuple[CrossCheck, ...]
    digests: tuple[Digest, ...]
    versions: dict[str, str]
    commands: tuple[str, ...]
    settings: dict[str, Any]
    questions: tuple[Question, ...] = Field(description="those of NIST SP 800-226, in its order")
    sections: tuple[Section, ...] = ()


class Printed(Report):
    """As the command prints it: with the file that it has written."""

    report: str
