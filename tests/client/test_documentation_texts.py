"""The built-in labelled texts: what is taken from the packages' documentation, and that no text is on both sides."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedblocks.client.data.labelled_text import documentation
from fedblocks.client.data.labelled_text.built_in import BUILT_IN
from fedblocks.client.data.labelled_text.documentation import docstrings, mask, prose
from fedblocks.errors import InputError
from fedblocks.settings import DataSource
from fedblocks.settings.built_in import CLASS_NAMES
from fedblocks.settings.contract import LabelledTextContract

SENTENCES = (
    "Every worker keeps a queue of the tasks that it was given, and takes the next one as soon as it is idle, so "
    "that no task waits for a worker that is busy."
)


def test_classes_have_names_wherever_no_text_is_read() -> None:
    """As in a model's card and a report: would catch a list of names that is not the source's own, or another order,
    and a contract's names that are passed over."""
    assert set(CLASS_NAMES) == set(BUILT_IN)
    for source, names in CLASS_NAMES.items():
        assert names == documentation.NAMES
        assert DataSource(source=source).class_names == names
        by_group = LabelledTextContract(group="document")
        assert DataSource(source=source, contract=by_group).class_names == names
    told = LabelledTextContract(labels=("a", "b"))
    assert DataSource(source="documentation-public", contract=told).class_names == ("a", "b")
    assert DataSource(source="texts.jsonl").class_names is None


def test_only_strings_that_begin_a_line_are_read() -> None:
    """Would catch code between two strings taken for prose, and bytes or templates taken for documentation."""
    code = 'x = """no"""\nclass A:\n    r"""yes"""\n    y = (\n        b"""no"""\n    )\n    """also"""\nf"""no"""\n'
    assert list(docstrings(code)) == ["yes", "also"]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("Uses numpy.linalg for the job, as SciPy does.", "Uses X for the job, as X does."),
        ("Set max_iter to 100 or http://a.example/b if torch is there.", "Set X to X or X if X is there."),
        ("Calls `run` ( see X ) of pandas, matplotlib", "Calls run ( see X ) of X"),
    ],
)
def test_names_of_packages_and_of_code_are_masked(told: str, found: str) -> None:
    """Would catch a class that is told by a name instead of by what the text says."""
    assert mask(told) == found


def test_a_paragraph_is_prose_or_left_out() -> None:
    """Would catch tables, examples of code and lists of parameters among the texts, and texts without end."""
    table = "Name    Value\n======  =====\n" + SENTENCES
    example = ">>> run()\n" + SENTENCES
    numbers = "1.5, 2.5, 3.5, " * 10 + "and so on."
    assert list(prose("\n\n".join([table, example, numbers, "Too short a text."]))) == []
    (kept,) = prose(f"Title\n\n{SENTENCES} {SENTENCES}\n\n{table}")
    assert len(kept.split()) == documentation.MOST_WORDS


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two subjects of one package, of 60 texts each, the first with copies."""
    words = random.Random(0)
    for subject, verb in (("one", "keeps"), ("two", "drops")):
        folder = tmp_path / "madeup" / subject
        folder.mkdir(parents=True)
        texts = [
            f"{verb} {' '.join(words.choice('abcdefghijklmnop') * 4 for _ in range(25))}." for _ in range(60)
        ]
        body = "\n".join(f'"""{text}"""' for text in texts + texts[:5])
        (folder / "a.py").write_text(body)
    (tmp_path / "madeup" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(documentation, "SUBJECTS", {"one": ("madeup/one",), "two": ("madeup/two",)})
    documentation._every.cache_clear()
    yield tmp_path
    documentation._every.cache_clear()
    sys.modules.pop("madeup", None)


def test_sides_share_no_text_and_the_order_tells_no_subject(packages: Path) -> None:
    """Would catch a copy that is public and private at once, and a hold-out that is of one subject alone."""
    public, private = documentation.texts(True), documentation.texts(False)
    every = [text.text for text in public + private]
    assert len(set(every)) == len(every) == 120
    assert 3 <= len(public) <= 40
    assert Counter(text.subject for text in public + private) == {"one": 60, "two": 60}
    assert 10 <= sum(text.subject == "one" for text in private[: len(private) // 2]) <= 42
    assert documentation.texts(True) == public
    assert {text.document for text in public + private} == {"madeup/one/a.py", "madeup/two/a.py"}


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback, or texts of fewer subjects than there are classes."""
    monkeypatch.setattr(documentation, "SUBJECTS", {"one": ("no_such_package/one",)})
    documentation._every.cache_clear()
    with pytest.raises(InputError, match="no_such_package is not installed"):
        documentation.texts(True)
    documentation._every.cache_clear()


@pytest.mark.slow
def test_the_real_texts_are_enough_for_five_companies() -> None:
    """Would catch versions of the packages, or rules, with which the presets have too little to learn from."""
    public, private = BUILT_IN["documentation-public"](), BUILT_IN["documentation-private"]()
    assert len(public.texts) > 1500
    assert len(private.texts) > 12_000
    assert not set(public.texts) & set(private.texts)
    assert set(public.labels) == set(private.labels) == set(public.names)
    for labels in (private.labels[:3000], private.labels[-3000:]):
        assert min(Counter(labels).values()) > 60
    named = ("numpy", "scipy", "pandas", "sqlalchemy", "networkx", "sympy")
    assert not any(name in text.lower().split() for text in private.texts for name in named)
