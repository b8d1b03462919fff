"""Coverage-guided fuzzing of the decoders with Atheris (`pip install 'fedblocks[fuzz]'`), for as long as one likes:

    python tests/support/fuzz_secure_aggregation.py CORPUS -runs=1000000 -max_len=6000

An input's first byte says which decoder it is for. An empty CORPUS is filled with valid messages first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedblocks.privacy.secure_aggregation"]):
    from support.secagg_fuzz import attempt, targets

TARGETS = targets()


def one(data: bytes) -> None:
    if data:
        attempt(TARGETS[data[0] % len(TARGETS)], data[1:])


def fill(corpus: Path) -> None:
    corpus.mkdir(exist_ok=True)
    if not any(corpus.iterdir()):
        for i, target in enumerate(TARGETS):
            for j, message in enumerate(target.corpus):
                (corpus / f"{i}-{j}").write_bytes(bytes([i]) + message)


if __name__ == "__main__":
    for argument in sys.argv[1:2]:
        fill(Path(argument))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
