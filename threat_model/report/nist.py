"""The questions of NIST SP 800-226, "Guidelines for Evaluating Differential Privacy Guarantees" (2025), in its order,
each with this run's answer and the section of the page that says more. The questions are in this package's words."""

from __future__ import annotations

from .document import Account, AttackAnswer, CrossCheck, Promise, Quality, Question
from .judgement import number, plain


def questions(
    *,
    promise: Promise,
    accounts: tuple[Account, ...],
    attackers: tuple[AttackAnswer, ...],
    quality: Quality | None,
    checks: tuple[CrossCheck, ...],
    audit: str,
    simulated: bool,
    features: str,
) -> tuple[Question, ...]:
    """From the top of its pyramid to the bottom: the promise, what can undermine it, what it rests on."""

    def q(about: str, question: str, answer: str, section: str) -> Question:
        return Question(about=about, question=question, answer=answer, section=section)

    epsilon = "none" if promise.epsilon is None else number(promise.epsilon)
    second = [account for account in accounts if account.agrees is not None]
    agreed = "no ledger is in this folder to be recomputed"
    if second:
        wrong = sum(not account.agrees for account in second)
        agreed = "a second accountant disagrees" if wrong else "a second accountant agrees with every ledger"
    worst = [a.question for a in attackers if a.could]
    beyond = (
        "a person with several" if promise.adjacency.endswith("example") else "one whom several values name"
    )
    clipped = (
        "clipped per example and accounted" if promise.private else "clipped per example, and not noised"
    )
    return (
        q("Privacy parameters", "How large are ε and δ, and what do they allow at worst?",
          f"ε = {epsilon}, δ = {plain(promise.delta)}. {promise.judgement}", "promise"),
        q("Variant", "Which definition of differential privacy is it?",
          f"Approximate (ε, δ), {promise.adjacency}; accounted by privacy loss distributions or Rényi divergences, "
          "shown as (ε, δ)." if promise.private else "None: no noise was accounted.", "account"),
        q("Unit of privacy", "What is protected: a person, a record, an event?",
          f"{promise.unit[:1].upper()}{promise.unit[1:]}, of one company; not {beyond}, nor a company."
          if promise.private else "Nothing is protected.", "promise"),
        q("Comparing guarantees", "With what may this ε be compared?",
          "With an ε of the same unit, adjacency and δ alone; all releases of the run are in it, and those of other "
          "runs of the same ledger." if promise.private else "With none: there is no ε.", "account"),
        q("Mixing with other releases", "What else was released without differential privacy?",
          "Who took part and when, settings and sizes, and quality on public data. In a simulation the report itself "
          "shows private examples." if simulated else
          "Who took part and when, settings and sizes, and quality on public data.", "left"),
        q("Algorithms and correctness", "Which mechanism, and how is it known to be implemented as proven?",
          " ".join(promise.mechanisms) + (f" Account: {agreed}." if promise.private else ""), "account"),
        q("Testing", "Was the implementation tested against its claim?",
          "The audit's conformance checks and lower bounds on ε." if audit != "none" else "No audit was run.",
          "statements"),
        q("Utility", "How accurate is the result, and at what cost of privacy?",
          _utility(quality), "utility"),
        q("Bias", "Whom does the noise hurt most?", _bias(quality), "groups"),
        q("Machine learning", "Which part of the training is private, and what of the data's public parts?",
          f"Every update of every block is {clipped} (features: {features}); pretraining saw public data alone.",
          "account"),
        q("Query model", "Who may ask what, and when does it stop?",
          "The coordinator asks for updates by a plan that was fixed beforehand; each company's ledger refuses what "
          "would pass its ceiling.", "account"),
        q("Threat and trust model", "Whom must one trust?", " ".join(promise.trust), "threat"),
        q("Implementation hazards", "Floating point, random numbers, timing?",
          _hazards(promise.private, simulated), "account"),
        q("Attacks", "What do known attacks find?",
          f"Found: {' '.join(worst)}" if worst else "Nothing protected." if attackers else "None were run.",
          "leakage"),
        q("Security and access control", "Who may read the data and the results?",
          "Data stay in each company's home, readable by its owner alone; this page shows private examples where it "
          "shows reconstructions." if simulated else
          "Data stay in each company's home, readable by its owner alone.", "left"),
        q("Data collection exposure", "What is exposed before any noise is added?",
          "The raw examples, within the company: collection, retention and consent are its own matter.", "left"),
        q("Documentation", "Can somebody else check this?",
          f"Digests, versions and commands are below; {sum(c.agrees for c in checks)} of {len(checks)} comparisons "
          "between sources agree.", "reproduce"),
    )  # fmt: skip


def _hazards(private: bool, simulated: bool) -> str:
    told = "Timing and the machines themselves are outside of this report."
    if not private:
        return f"No noise was drawn. {told}"
    drawn = "Noise comes from a cryptographic generator."
    if simulated:
        drawn = (
            "Here noise follows from a seed, since this is a simulation; a company's own comes from a cryptographic "
            "generator."
        )
    return f"{drawn} What floating point may leak is in ε. {told}"


def _utility(quality: Quality | None) -> str:
    if quality is None:
        return "No round has been evaluated."
    if quality.non_private is None:
        return "Measured below; the same run without noise was not made, so the cost of privacy is not known."
    return "Measured below, beside the same run without noise."


def _bias(quality: Quality | None) -> str:
    if quality is None or not quality.subgroups:
        return "Not measured: no quality by group is known here."
    lost = [g.name for groups in quality.subgroups for g in groups.groups if g.lost]
    if lost:
        return f"Worse than before the run: {', '.join(lost)}."
    return "By class and company below; none is surely worse than before the run."
