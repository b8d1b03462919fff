"""An officer's questions to an audit, each with its strongest answer; and what no answer speaks of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..adversaries import ADVERSARIES
from ..attacks import attacks
from ..results import Result
from ..sentences import ORDER, figure
from .audited import Audited
from .document import AttackAnswer

_WHOLE = ("texts in order",)
_PARTS = ("token values found",)


@dataclass(frozen=True)
class Asked:
    question: str
    of: Callable[[Result], bool]


REBUILD = "Rebuild an example exactly?"
MEMBER = "Tell whether an example was used?"
_MEMBERS = "Find members, accusing 1 other in 100?"
QUESTIONS = (
    Asked(
        REBUILD,
        lambda r: r.statement == "reconstruction" and ("exact" in r.statistic or r.statistic in _WHOLE),
    ),
    Asked(
        "Come closer to an example than without the release?",
        lambda r: r.statement == "reconstruction" and r.unit == "dB",
    ),
    Asked(
        "Read off a label, a category or a word?",
        lambda r: r.statement == "reconstruction" and ("read off" in r.statistic or r.statistic in _PARTS),
    ),
    Asked(MEMBER, lambda r: r.statement == "membership" and r.unit == "auc"),
    Asked(
        _MEMBERS,
        lambda r: r.statement == "membership" and "false alarms" in r.statistic,
    ),
    Asked("Learn facts of a company as a whole?", lambda r: r.statement == "property"),
    Asked("Make the model repeat planted secrets?", lambda r: r.statement == "extraction"),
)


def answers(audit: Audited | None) -> tuple[AttackAnswer, ...]:
    """Of protected views alone; a question without a result is left out."""
    if audit is None:
        return ()
    found = [(asked, _concerned(asked, audit.audit.results)) for asked in QUESTIONS]
    told = tuple(_answer(asked.question, results) for asked, results in found if results)
    if any(each.question == REBUILD and each.could for each in told):
        return tuple(_by_rebuilding(each) for each in told)
    return told


def _by_rebuilding(answer: AttackAnswer) -> AttackAnswer:
    """No test of membership has to answer what a rebuilt example answers."""
    if answer.question not in (MEMBER, _MEMBERS) or answer.could is not None:
        return answer
    text = f"Yes, by rebuilding it: an example that was rebuilt was used. By a test: {_lower(answer.answer)}"
    return answer.model_copy(update={"answer": text, "could": True})


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _concerned(asked: Asked, results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r.protected and r.outcome != "not applicable" and asked.of(r)]


def strength(result: Result) -> tuple[int, float, float]:
    """Smaller is worse: first by outcome, then by how far above its baseline, then by its upper limit."""
    rank = ORDER.index(result.outcome)
    if result.value is None:
        return rank, 0.0, 0.0
    base = 0.0 if result.baseline is None else result.baseline.value
    return rank, base - result.value.value, -result.value.high


def _answer(question: str, results: list[Result]) -> AttackAnswer:
    answered = [r for r in results if r.outcome != "inconclusive" and r.value is not None]
    worst = min(answered or results, key=strength)
    could = worst.outcome in ("found", "partly found", "refuted") if answered else None
    value = worst.value
    return AttackAnswer(
        question=question,
        answer=_words(worst, could) + _open(len(results) - len(answered) if answered else 0),
        could=could,
        attack=worst.attack,
        adversary=worst.adversary,
        view=worst.view,
        block=worst.block,
        unit=worst.unit,
        value=None if value is None else value.value,
        low=None if value is None else _finite(value.low),
        high=None if value is None else _finite(value.high),
        level=None if value is None else value.level,
        n=None if value is None else value.n,
        tests=len(results),
    )


def _open(tests: int) -> str:
    return f" {tests} more test{' was' if tests == 1 else 's were'} left open." if tests else ""


def _words(result: Result, could: bool | None) -> str:
    """A figure is never called no better than a guess where its own interval says otherwise."""
    if could is None:
        return f"Not known: {result.reason}."
    value, unit = result.value, result.unit
    assert value is not None
    level = f"{100 * value.level:.4g}% confidence"
    limits = f"{figure(value.low, unit)} to {figure(value.high, unit)} at {level}"
    if unit == "dB":
        limits = limits.replace("+", "")
    base = None if result.baseline is None else result.baseline.value
    guess = "" if not base else f"; a guess gets {figure(base, unit)}"
    if unit == "auc":
        above = value.low > 0.5
        head = "Partly" if could else "Not established" if above else "No better than a coin"
        text = (
            f"{head}: right {100 * value.value:.0f} times in 100, where guessing is 50 "
            f"({100 * value.low:.0f} to {100 * value.high:.0f} at {level}, {value.n} cases"
        )
        if not could and above:
            text += "; the largest of several, not enough for the audit's test"
        if (ceiling := result.ceiling) is not None:
            within = ", which is in that range" if value.low <= ceiling < value.value else ""
            text += f"; this noise lets no attack pass {100 * ceiling:.0f}{within}"
        return f"{text})."
    head = "Yes" if could else "No"
    if unit == "share" and value.method == "clopper-pearson":
        hits = round(value.value * value.n)
        if hits == 0:
            return f"{head}: 0 of {value.n}, so at most {figure(value.high, unit)} at {level}{guess}."
        better = ", no better than a guess" if not could and base else ""
        return f"{head}{better}: {hits} of {value.n} ({limits}{guess})."
    what = {"share": "", "dB": "the error falls by "}.get(unit, f"{result.statistic} ")
    shown = figure(value.value, unit).replace("+", "")
    found = f"{what}{shown} ({limits}; {value.n} cases{guess})"
    if could or not guess:
        return f"{head}: {found}."
    return f"No better than a guess: {found}." if value.low <= (base or 0.0) else f"Not established: {found}."


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def not_tested(audit: Audited | None, *, real: bool, blocks: int) -> tuple[str, ...]:
    """What somebody must not take this report's silence about for an answer."""
    found: list[str] = []
    if real:
        found.append(
            "Any attack: it takes the companies' examples, which never leave them. Audit a simulation of this plan."
        )
    elif audit is None:
        found.append("Any attack: this run has not been audited.")
    else:
        results = audit.audit.results
        tried = {r.attack for r in results if r.outcome != "not applicable"}
        refused = sorted({r.attack for r in results} - tried)
        if refused:
            found.append(f"Attacks that do not apply to this run: {', '.join(refused)}.")
        open_ = sorted({r.attack for r in results if r.outcome == "inconclusive"})
        if open_:
            found.append(f"Attacks that ended without an answer: {', '.join(open_)}.")
        never = sorted({each.name for each in attacks()} - {r.attack for r in results})
        if never:
            found.append(f"Attacks that were not made: {', '.join(never)}.")
        absent = [a for a in ADVERSARIES if a not in audit.audit.adversaries]
        if absent:
            found.append(f"Adversaries that were not asked for: {', '.join(absent)}.")
        left = [str(b) for b in range(blocks) if b not in audit.audit.blocks]
        if left:
            found.append(f"Blocks that were not attacked: {', '.join(left)}.")
    return (
        *found,
        "Several examples of one person attacked together, and one person's examples at two companies.",
        "The companies' machines, networks and people; how long answers take; what the final model is used for.",
        "Attacks that nobody has thought of yet: what was not found is not thereby safe.",
    )
