"""Tables on a narrow screen: each cell carries the head of its column, so that a row can be read as a list."""

from __future__ import annotations

import re

from markupsafe import Markup

_HEAD = re.compile(r"<thead>(.*?)</thead>", re.DOTALL)
_HEADS = re.compile(r"<t([hd])\b[^>]*>(.*?)</t\1>", re.DOTALL)
_ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
_CELL = re.compile(r"<t([hd])\b")
_TAG = re.compile(r"<[^>]+>")


def labelled(table: Markup) -> Markup:
    """The table of this package's templates, with `data-label` on every cell of its body that is not the row's own
    head. A table without heads of columns stays as it is."""
    text = str(table)
    found = _HEAD.search(text)
    if found is None:
        return table
    heads = [" ".join(_TAG.sub("", head[2]).split()) for head in _HEADS.finditer(found[1])]
    body = _ROW.sub(lambda row: f"<tr>{_with_labels(row[1], heads)}</tr>", text[found.end() :])
    return Markup(text[: found.end()] + body)


def _with_labels(row: str, heads: list[str]) -> str:
    column = iter(heads)

    def cell(found: re.Match[str]) -> str:
        head = next(column, "").replace('"', "&quot;")
        return f'<td data-label="{head}"' if found[1] == "d" and head else found[0]

    return _CELL.sub(cell, row)
