"""The documents: links, anchors, paths and command lines in them lead to something; the README is one page."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner

from fedblocks.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CHANGELOG.md", "docs/*.md", "threat_model/*.md", "privacy/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = {
    "blocks", "cli", "client", "docs", "experiments", "privacy", "protocol", "server", "settings", "tests",
    "threat_model",
}  # fmt: skip
SOURCES = {".py", ".md", ".toml", ".proto", ".json", ".png"}
LONGEST_README = 150


@dataclass
class Document:
    """What a Markdown file refers to."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # of images, too
    spans: list[str] = field(default_factory=list)  # inline code
    lines: list[str] = field(default_factory=list)  # of shell blocks


def parse(text: str) -> Document:
    """Links, code and headings, as GitHub reads them."""
    document, seen = Document(), Counter[str]()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in zip([Token("", "", 0), *tokens], tokens, strict=False):
        if token.type == "fence" and token.info.split()[:1] in (["sh"], ["bash"], ["console"]):
            joined = token.content.replace("\\\n", " ")
            document.lines += filter(None, (line.strip() for line in joined.splitlines()))
        for child in token.children or []:
            if child.type in ("link_open", "image"):
                document.links.append(str(child.attrs["href" if child.type == "link_open" else "src"]))
            elif child.type == "code_inline":
                document.spans.append(child.content)
        if before.type == "heading_open":
            name = slug("".join(child.content for child in token.children or []))
            document.anchors.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return document


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, no punctuation, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def document_at(path: Path) -> Document:
    return parse(path.read_text("utf-8"))


def broken_links(document: Document, file: Path) -> list[str]:
    """Relative links of the document at `file` that lead to no file, or to no heading of it."""
    return [link for link in document.links if not urlsplit(link).scheme and not leads(link, document, file)]


def leads(link: str, document: Document, file: Path) -> bool:
    parts = urlsplit(link)
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.is_relative_to(ROOT) or (parts.path and not target.exists()):
        return False
    if not parts.fragment:
        return True
    anchors = document.anchors if target == file else document_at(target).anchors
    return parts.fragment in anchors


def missing_paths(document: Document) -> list[str]:
    """Inline code that names a file or folder of this repository which does not exist."""
    return [span for span in document.spans if names_path(span) and not any(ROOT.glob(span.rstrip("/")))]


def names_path(span: str) -> bool:
    """`folder/...` of this repository, or any `x/y.py`; `HOME/policy.toml` and `runs/ID` are the reader's own."""
    if not re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", span) or "/" not in span:
        return False
    first = span.partition("/")[0]
    return first in FOLDERS or (Path(span).suffix in SOURCES and first.islower() and first != "runs")


def bad_commands(document: Document) -> list[str]:
    """Command lines that `fedblocks` would refuse. A line of a block is whole, inline code may be a part of one."""
    found = [f"{line}: {error}" for line in document.lines for error in refusals(line, whole=True)]
    return found + [f"{span}: {error}" for span in document.spans for error in refusals(span, whole=False)]


def refusals(line: str, whole: bool) -> Iterator[str]:
    if not line.startswith("fedblocks "):
        return
    line_words = shlex.split(line, comments=True)[1:]
    own = list(takewhile(lambda word: word not in ("|", ">", "&&"), line_words))
    for words in alternatives(own):
        try:
            understand(words)
        except click.exceptions.MissingParameter as error:
            if whole:
                yield error.format_message()
        except click.exceptions.NoArgsIsHelpError:
            pass  # `fedblocks bench` alone prints its help
        except click.UsageError as error:
            yield error.format_message()


def alternatives(words: list[str]) -> list[list[str]]:
    """`ledger show|verify` is two commands."""
    for i, word in enumerate(words):
        if "|" in word:
            return [[*words[:i], part, *words[i + 1 :]] for part in word.split("|")]
    return [words]


def understand(words: list[str]) -> None:
    """Parse the words as the command line does, and run nothing.

    Raises:
        click.UsageError: an unknown command, option or preset, a bad value, an argument missing or too many.
    """
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="fedblocks")
    words = [word for word in words if word not in ("COMMAND", "--help", "--version")]  # fit every command
    while isinstance(command, click.Group) and words:
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = (
            found,
            click.Context(found, info_name=name, parent=context, **found.context_settings),
        )
    command.parse_args(context, words)
    preset = context.params.get("preset")
    if preset is not None and not preset.endswith(".toml") and preset not in presets():
        raise click.UsageError(f"no preset {preset}")


@cache
def presets() -> set[str]:
    return set(CliRunner().invoke(app, ["presets"]).stdout.split())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_images_lead_to_files_and_headings(name: str) -> None:
    assert broken_links(document_at(ROOT / name), ROOT / name) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_and_folders_exist(name: str) -> None:
    assert missing_paths(document_at(ROOT / name)) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_command_lines_are_accepted(name: str) -> None:
    assert bad_commands(document_at(ROOT / name)) == []


def test_every_command_is_documented() -> None:
    """A command that is added has to be described in docs/commands.md."""

    def commands(command: click.Command, *path: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from commands(inner, *path, name)
        else:
            yield " ".join(path)

    lines = document_at(ROOT / "docs/commands.md").lines
    documented = {
        name
        for name in commands(typer.main.get_command(app), "fedblocks")
        if any(line == name or line.startswith(f"{name} ") for line in lines)
    }
    assert documented == set(commands(typer.main.get_command(app), "fedblocks"))


def test_every_page_is_listed_in_the_index_and_in_the_readme() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(document_at(ROOT / "docs/index.md").links)
    assert {f"docs/{page}" for page in pages} <= set(document_at(ROOT / "README.md").links)


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= LONGEST_README


BROKEN = """
# One heading: `code`, and more!

## Twice
## Twice

[good](../README.md), [good](#one-heading-code-and-more), [good](#twice-1), [elsewhere](https://example.org/x#y),
[good](privacy.md#the-guarantee), [no file](nothing.md), [no heading](#three), [no heading there](privacy.md#nowhere),
[outside](../../outside.md), ![no image](nothing.png)

| `client/app.py` | `client/nothing.py` |
|---|---|
| `tests/nothing/` | `tests/` and `tests/test_nothing*.py` |
| `HOME/policy.toml` | `runs/ID`, `constraints*.txt`, `and/or` |

Inline `fedblocks ledger export` is a part of a line, `fedblocks ledger nothing` is none, nor is `fedblocks bench
secagg --nothing`. All of `fedblocks bench families|nothing|secagg`.

```sh
fedblocks ledger export runs/ID out.csv   # a comment with --nothing
fedblocks ledger export runs/ID           # an argument is missing
fedblocks simulate digits --transport pigeon
fedblocks simulate digits ar-text
fedblocks simulate digits --set
fedblocks simulate nothing && fedblocks nothing
fedblocks simulate digits \\
    --resume
fedblocks bench simulate --json | jq .nothing > nothing.json
fedblocks supernode HOME --whatever flower-supernode takes
fedblocks account --steps many
echo fedblocks nothing
```

```python
fedblocks nothing
```
"""


def test_a_broken_document_is_found_out() -> None:
    """The checks above can fail: each fault of this document is found, and nothing else."""
    document, file = parse(BROKEN), ROOT / "docs" / "broken.md"
    assert document.anchors == {"one-heading-code-and-more", "twice", "twice-1"}
    assert broken_links(document, file) == [
        "nothing.md", "#three", "privacy.md#nowhere", "../../outside.md", "nothing.png",
    ]  # fmt: skip
    assert missing_paths(document) == ["client/nothing.py", "tests/nothing/", "tests/test_nothing*.py"]
    assert [text.partition(":")[0] for text in bad_commands(document)] == [
        "fedblocks ledger export runs/ID           # an argument is missing",
        "fedblocks simulate digits --transport pigeon",
        "fedblocks simulate digits ar-text",
        "fedblocks simulate digits --set",
        "fedblocks simulate nothing && fedblocks nothing",
        "fedblocks simulate digits      --resume",
        "fedblocks account --steps many",
        "fedblocks ledger nothing",
        "fedblocks bench secagg --nothing",
        "fedblocks bench families|nothing|secagg",
    ]
