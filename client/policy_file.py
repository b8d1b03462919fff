"""A first `policy.toml`, every rule with its meaning as a comment; and the `[data]` table that an import adds.

The comments are the descriptions of `Policy`'s fields, so no rule can be without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from ..blocks.pretrained import places
from ..errors import InputError
from ..protocol import private_file
from ..settings import DataKind, parsed_toml, read_text, validated
from ..settings.commented import commented
from .policy import Policy

POLICY_FILE = "policy.toml"
_EXAMPLES: dict[str, object] = {
    "epsilon_ceiling_run": 8.0,
    "epsilon_ceiling_year": 8.0,
    "plans": ["0123...  64 hexadecimal digits"],
    "shared_states": ["0123...  64 hexadecimal digits"],
    "group": "patient",
    "pretrained": ["/srv/models/minilm-3"],
    "largest_predicted_gain": 1.0,
    "most_rounds_a_day": 200,
    "hours": ["20:00", "06:00"],
    "threads": 4,
    "answer_seconds": 600.0,
}
"""What a rule that is not set by default may look like."""
_ANYTHING = DataKind(inputs=(), targets=())
_LEFT_OUT = ("data", "simulation_seed")
_TOP = """\
# The rules of {company}. A coordinator's plan that breaks one is refused before anything is charged.
# This file is read with every message: a change takes effect at once, also in a run that goes on.
# Lines that begin with "# name =" are rules that are not set; remove the "# " to set one.
"""


def first_policy(company: str, epsilon_ceiling: float, delta: float, **others: object) -> str:
    """The text of a first policy.toml, [data] left open; `others`: rules that are not as usual, by field.

    Raises: InputError where a value is not allowed.
    """
    given = {"company": company, "epsilon_ceiling": epsilon_ceiling, "delta": delta, **others}
    rules = validated(Policy, given | {"data": _ANYTHING})
    text = _TOP.format(company=company) + commented(rules, examples=_EXAMPLES, left_out=_LEFT_OUT)
    return text + f"\n# [data]: {Policy.model_fields['data'].description}.\n"


def declared(home: Path) -> DataKind | None:
    """The data that the home's policy declares, none if that is still open; InputError if the policy is not valid."""
    raw = _raw(home)
    policy = validated(Policy, raw if "data" in raw else raw | {"data": _ANYTHING})
    return policy.data if "data" in raw else None


def know_pretrained(home: Path) -> None:
    """Let this process know the converted models that the home's policy names, whose tokenizers read its texts.

    Raises: InputError where one of them is none.
    """
    named = _raw(home).get("pretrained", ())
    for folder in named if isinstance(named, list) else ():
        places.register(Path(str(folder)))


def refuse_other_data(home: Path, kind: DataKind) -> bool:
    """Whether the policy declares data, which must be of this kind; InputError if they are not."""
    before = declared(home)
    if before is not None and before != kind:
        rule = "policy.toml declares other data; import for the model that it is for, or change or remove its [data]"
        raise InputError("policy.data", before.model_dump(exclude_none=True), rule)
    return before is not None


def declare_data(home: Path, kind: DataKind) -> bool:
    """Write [data] into the home's policy.toml if it has none; whether it was written.

    Raises: InputError where the policy is not valid, or declares other data.
    """
    if refuse_other_data(home, kind):
        return False
    path = home / POLICY_FILE
    table = tomli_w.dumps({"data": kind.model_dump(mode="json", exclude_none=True)})
    private_file.write(path, f"{read_text('policy', path).rstrip()}\n\n{table}".encode())
    return True


def _raw(home: Path) -> dict[str, Any]:
    path = home / POLICY_FILE
    return parsed_toml("policy", path, read_text("policy", path))
