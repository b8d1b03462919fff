"""What a company's codes mean, in words for the coordinator's people; the company's own log says more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_WORDS = {
    "no_reply": "did not answer",
    "too_few": "too few companies came to its end",
    "failed": "its node could not run the app",
    "privacy": "its policy or its ledger does not allow it",
    "no_data": "its data are missing or do not fit",
    "data_changed": "its data are not those with which the run began",
    "pending": "a person of this company has not decided yet",
    "denied": "a person of this company has denied the run",
    "closed": "it is outside of the hours that its policy allows",
    "too_many": "one of its policy's limits on numbers is reached",
    "no_room": "its disk is full",
    "unsupported_layer": "it cannot train this model privately",
    "wrong_phase": "it has not joined, or lost what it had joined",
    "bad_session": "it has joined another run or other settings",
    "not_awaited": "it does not know of having joined this run",
    "bad_model": "the model is not the one that its joined plan allows",
    "model_kept": "it holds another model of a run of this name",
    "not_trained": "it has not trained in this run, and so does not judge its model",
    "internal": "an error on its machine",
    "wrong_name": "it has the certificate of another company",
    "oversized_sum": "the sum is larger than all clips together allow",
    "public_loss_rose": "the loss on public data rose past the coordinator's limit",
    "bad_share": "the shares that were sent do not open the sum",
}


def in_words(code: str) -> str:
    """`no_data` as "its data are missing or do not fit (no_data)"."""
    return f"{_WORDS[code]} ({code})" if code in _WORDS else code


def evaluation_in_words(found: Mapping[str, Any]) -> str:
    """A federated evaluation, as a line of metrics has it: "accuracy 0.81 (95%: 0.78 to 0.84) on about 1,234"."""
    metric = str(found["metric"]).replace("_", " ")
    if found["status"] != "done":
        return f"{metric} was not evaluated: {in_words(found['status'])}"
    about = f"about {max(0.0, found['examples']):,.0f} held-out examples"
    if found["value"] is None:
        return f"{metric} unknown: {about} are not enough for the noise (deviation {found['deviation']:.3g})"
    return f"{metric} {found['value']:.3g} (95%: {found['low']:.3g} to {found['high']:.3g}) on {about}"


def named(companies: Collection[str]) -> str:
    """A list of names in a sentence."""
    return ", ".join(sorted(companies))


def absences_in_words(absent: Mapping[str, tuple[str, str]]) -> str:
    """Who was absent and why, by name."""
    return "; ".join(f"{name}: {in_words(code)}" for name, (_, code) in sorted(absent.items()))
