"""What the documentation of Python packages tells, a paragraph a text, its class the subject that it is about.

12 subjects of packages that fedblocks installs anyway, so nothing is downloaded. Some subjects share a package, or
are in two (statistics is in SciPy and in statsmodels), and the packages' names, names_of_code and numbers are masked:
a text has to be understood.

Texts follow from the packages' versions (`constraints.txt`) alone. Which of them are public follows from the text's
own digest, so another version moves no text from one side to the other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ....errors import InputError

# Folders and files, in packages: where a subject's texts come from.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "algebra": (
        "sympy/calculus", "sympy/combinatorics", "sympy/concrete", "sympy/core", "sympy/functions",
        "sympy/integrals", "sympy/liealgebras", "sympy/matrices", "sympy/ntheory", "sympy/polys", "sympy/series",
        "sympy/simplify", "sympy/solvers", "sympy/tensor",
    ),
    "compiler": ("torch/_dynamo", "torch/_functorch", "torch/_inductor", "torch/export", "torch/fx"),
    "databases": ("sqlalchemy",),
    "distributed-training": ("torch/distributed",),
    "graphs": ("networkx",),
    "language-models": (
        "transformers/cache_utils.py", "transformers/data", "transformers/generation",
        "transformers/integrations", "transformers/modeling_utils.py", "transformers/pipelines",
        "transformers/tokenization_utils_base.py", "transformers/trainer.py", "transformers/trainer_utils.py",
        "transformers/training_args.py", "transformers/utils",
    ),
    "learning": (
        "sklearn/cluster", "sklearn/compose", "sklearn/covariance", "sklearn/decomposition",
        "sklearn/discriminant_analysis.py", "sklearn/ensemble", "sklearn/feature_selection",
        "sklearn/gaussian_process", "sklearn/impute", "sklearn/inspection", "sklearn/linear_model",
        "sklearn/manifold", "sklearn/metrics", "sklearn/mixture", "sklearn/model_selection",
        "sklearn/naive_bayes.py", "sklearn/neighbors", "sklearn/neural_network", "sklearn/preprocessing",
        "sklearn/svm", "sklearn/tree",
    ),
    "numerics": (
        "scipy/fft", "scipy/integrate", "scipy/interpolate", "scipy/linalg", "scipy/ndimage", "scipy/optimize",
        "scipy/signal", "scipy/sparse", "scipy/spatial", "numpy/linalg",
    ),
    "physics": ("sympy/physics", "sympy/vector"),
    "plots": ("matplotlib",),
    "statistics": (
        "scipy/stats", "statsmodels/base", "statsmodels/discrete", "statsmodels/duration", "statsmodels/gam",
        "statsmodels/genmod", "statsmodels/multivariate", "statsmodels/nonparametric", "statsmodels/othermod",
        "statsmodels/regression", "statsmodels/robust", "statsmodels/sandbox", "statsmodels/stats",
        "statsmodels/tsa",
    ),
    "tables": ("pandas",),
}  # fmt: skip
NAMES = tuple(SUBJECTS)

MOST_OF_A_SUBJECT = 1400
MOST_OF_A_DOCSTRING = 5
LEAST_WORDS, MOST_WORDS = 20, 40
COPIED_WORDS = 8  # two texts with so many words in a row in common are copies: the first one is kept
PUBLIC_SHARE = 0.13

_MASK = "X"
_STRING = re.compile(r"([rRuUbBfF]{0,2})(\"\"\"|''')(.*?)(?<!\\)\2", re.DOTALL)
_NO_PROSE = (">>>", "...", ".. ", "---", "===", "|", "+--")
_WORD = re.compile(r"[A-Za-z']+")
_MASKED = re.compile(
    r"https?://\S+|\w*[_\d]\w*|\w+(?:\.\w+)+"  # addresses, numbers, names_of_code, a.b
    r"|(?i:\b(?:numpy|scipy|scikit-learn|sklearn|scikits?|statsmodels|torch|pytorch|pandas|matplotlib|pyplot"
    r"|networkx|sqlalchemy|sympy|transformers|hugging ?face|np|pd|plt|nx|sa)\b)"
)
_NEITHER_WORD_NOR_MARK = re.compile(r"[^A-Za-z',.;:()-]+")
_EMPTY_PARENTHESES = re.compile(rf"\(\s*{_MASK}?\s*\)")
_MASKS_IN_A_ROW = re.compile(rf"(?:\b{_MASK}\b[\s,.;:()'-]*)+\b{_MASK}\b")


class Text(NamedTuple):
    """`document`: the file that it is from."""

    text: str
    subject: str
    document: str


def texts(public: bool) -> list[Text]:
    """The public texts or the others, in an order that tells nothing of their subjects.

    Raises: InputError naming the package that is not installed.
    """
    return [text for text in _every() if (_draw("side", text) < PUBLIC_SHARE) is public]


@cache
def _every() -> tuple[Text, ...]:
    found: list[Text] = []
    seen: set[int] = set()
    for subject, places in SUBJECTS.items():
        own = [text for place in places for text in _of_place(subject, place, seen)]
        found += sorted(own, key=lambda text: _draw("subject", text))[:MOST_OF_A_SUBJECT]
    # By other draws: by those that chose them, the texts of a subject with many would come first.
    return tuple(sorted(found, key=lambda text: _draw("order", text)))


def _draw(what: str, text: Text) -> float:
    """Uniform in [0, 1), and the text's own."""
    return int.from_bytes(hashlib.blake2b(f"{what} {text.text}".encode(), digest_size=6).digest()) / 2**48


def _of_place(subject: str, place: str, seen: set[int]) -> Iterator[Text]:
    root = _root(place.split("/")[0])
    at = root / place
    for file in [at] if at.is_file() else sorted(at.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if "/test" not in name:
            for docstring in docstrings(file.read_text("utf-8", "replace")):
                fresh = (text for text in prose(docstring) if _is_fresh(text, seen))
                yield from (Text(text, subject, name) for text in islice(fresh, MOST_OF_A_DOCSTRING))


def _root(package: str) -> Path:
    """The folder that the package lies in; it is not imported."""
    found = find_spec(package)
    if found is None or found.origin is None:
        rule = f"{package} is not installed; pip install 'fedblocks[simulation,pretrained]'"
        raise InputError("data.source", "documentation", rule)
    return Path(found.origin).parent.parent


def docstrings(code: str) -> Iterator[str]:
    """The strings of three quotes that begin a line: parsing all these packages would take a minute."""
    for match in _STRING.finditer(code):
        start = code.rfind("\n", 0, match.start()) + 1
        if not code[start : match.start()].strip() and not set(match[1].lower()) & {"f", "b"}:
            yield match[3]


def prose(docstring: str) -> Iterator[str]:
    """Its paragraphs of sentences, masked and cut, without tables, code and lists of parameters."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if any(line.strip().startswith(_NO_PROSE) for line in paragraph.splitlines()):
            continue
        text = " ".join(paragraph.split())
        letters = sum(map(len, _WORD.findall(text)))
        if 80 <= len(text) <= 600 and letters > 0.72 * len(text) and text[0].isalpha() and text[-1] in ".:)":
            masked = mask(text)
            if len(_words(masked)) >= LEAST_WORDS:
                yield " ".join(masked.split()[:MOST_WORDS])


def mask(text: str) -> str:
    """The text with an X in place of addresses, numbers, names_of_code and names of packages."""
    text = _NEITHER_WORD_NOR_MARK.sub(" ", _MASKED.sub(f" {_MASK} ", text))
    return " ".join(_MASKS_IN_A_ROW.sub(_MASK, _EMPTY_PARENTHESES.sub(" ", text)).split())


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word != _MASK.lower()]


def _is_fresh(text: str, seen: set[int]) -> bool:
    """Whether it is a copy of no text in `seen`, which it is added to."""
    words = _words(text)
    runs = {
        int.from_bytes(
            hashlib.blake2b(" ".join(words[i : i + COPIED_WORDS]).encode(), digest_size=8).digest()
        )
        for i in range(len(words) - COPIED_WORDS + 1)
    }
    copied = bool(runs & seen)
    if not copied:
        seen |= runs
    return not copied
