"""Settings as a TOML file for people: every field with its description as a comment."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Mapping

from pydantic import BaseModel


def commented(
    settings: BaseModel, *, examples: Mapping[str, object] = {}, left_out: Collection[str] = ()
) -> str:
    """A value that is not set stands there as a comment, with an example of what it may look like."""
    values, text = settings.model_dump(mode="json"), ""
    for name, field in type(settings).model_fields.items():
        if name in left_out:
            continue
        assert field.description is not None
        text += "\n" + textwrap.fill(
            field.description, 110, initial_indent="# ", subsequent_indent="# ", break_long_words=False
        )
        unset = "# " if values[name] is None else ""
        # JSON of these values is TOML, on one line.
        shown = json.dumps(examples[name] if values[name] is None else values[name])
        text += f"\n{unset}{name} = {shown}\n"
    return text
