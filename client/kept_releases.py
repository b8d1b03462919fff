"""A release is charged once, though the round that it was made for may fail and be begun anew.

HOME/release-*.bin, one file a round and block, of mode 600: the release's id, everything that it depends on, and,
once the training is done, its residues before masking. A round that is begun anew from the same states gets

- the same bits again, under new masks, if the company's own noise protects them and it has not helped to open a sum
  with them. Whoever gets them twice learns nothing that the account does not hold already. If a sum with them was
  opened by others, most companies have answered there and bring fresh releases: the difference of the two sums
  isolates nobody. The mean of many such sums would, so bits are sent MOST_SENT times at most.
- a new training under the same id, if the file has no residues: a vector leaves only after it is in the file, so
  none has left.
- else a new release, which is charged. So too under shares of one noise: those protect a single sum, and whether that
  was opened the company cannot know.

The file is removed before the company sends the shares that open a sum. One training at a time goes on in a home: two
at once would be two releases under one charge.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from ..protocol import private_file

_WAIT = 600.0
MOST_SENT = 4
Residues = npt.NDArray[np.uint32]
Labels = tuple[str | int, ...]


@dataclass(frozen=True)
class Kept:
    """A release that was begun: its id, its residues if it is done, and how often they may have left."""

    id: str
    body: bytes
    sent: int

    @property
    def again(self) -> bool:
        """Whether its bits may leave once more."""
        return bool(self.body) and self.sent < MOST_SENT

    @property
    def residues(self) -> Residues:
        return np.frombuffer(self.body, "<u4").astype(np.uint32)


@dataclass(frozen=True)
class KeptReleases:
    """The files of one home; a release is known by run, round and block."""

    home: Path

    def id_for(self, run: str, round_: int, block: str, labels: Labels, *, again: bool) -> str:
        """The id under which the release would be made now; `again`: whether its bits may be sent twice."""
        kept = self._find(run, round_, block, labels)
        usable = kept is not None and (not kept.body or (again and kept.again))
        return kept.id if kept is not None and usable else secrets.token_hex(16)

    def make(
        self,
        run: str,
        round_: int,
        block: str,
        labels: Labels,
        *,
        again: bool,
        charge: Callable[[str], None],
        train: Callable[[], Residues],
    ) -> Residues:
        """The residues of this release: those that were made before, or new ones, charged before they are made.

        `charge` is called with the release's id, which stands for the same bits every time.
        """
        with self._alone():
            kept = self._find(run, round_, block, labels)
            if kept is not None and again and kept.again:
                charge(kept.id)  # costs nothing, unless the ledger has lost it
                self._write(run, round_, block, labels, replace(kept, sent=kept.sent + 1))
                return kept.residues
            begun = kept.id if kept is not None and not kept.body else secrets.token_hex(16)
            self._forget_others(run, round_)
            self._write(run, round_, block, labels, Kept(begun, b"", 0))
            charge(begun)
            residues = train()
            self._write(run, round_, block, labels, Kept(begun, residues.astype("<u4").tobytes(), 1))
            return residues

    def spend(self, run: str, round_: int, block: str) -> None:
        """The company is about to help open a sum with this release: it must not be sent again."""
        path = self._path(run, round_, block)
        if path.exists():
            path.unlink()
            descriptor = os.open(self.home, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """The run is over."""
        for path in self.home.glob("release-*.bin"):
            path.unlink(missing_ok=True)

    def _find(self, run: str, round_: int, block: str, labels: Labels) -> Kept | None:
        """A file that is not whole, or of other labels, is none: then the release is charged."""
        try:
            head, _, body = self._path(run, round_, block).read_bytes().partition(b"\n")
            found = json.loads(head)
            if found["of"] != [run, round_, block] or found["labels"] != list(labels):
                return None
            id_, size, digest, sent = found["id"], found["size"], found["digest"], found["sent"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if len(body) != size or hashlib.sha256(body).hexdigest() != digest:
            return None
        return Kept(str(id_), body, int(sent))

    def _write(self, run: str, round_: int, block: str, labels: Labels, kept: Kept) -> None:
        head = {
            "of": [run, round_, block], "labels": labels, "id": kept.id, "sent": kept.sent,
            "size": len(kept.body), "digest": hashlib.sha256(kept.body).hexdigest(),
        }  # fmt: skip
        private_file.write(self._path(run, round_, block), json.dumps(head).encode() + b"\n" + kept.body)

    def _forget_others(self, run: str, round_: int) -> None:
        """What is of another round will not be asked for again; a round's blocks are kept together."""
        kept = _prefix(run, round_)
        for path in self.home.glob("release-*.bin"):
            if not path.name.startswith(kept):
                path.unlink(missing_ok=True)

    def _path(self, run: str, round_: int, block: str) -> Path:
        return self.home / f"{_prefix(run, round_)}{block}.bin"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with FileLock(self.home / "release.lock", timeout=_WAIT, mode=0o600, fallback_to_soft=False):
            yield


def _prefix(run: str, round_: int) -> str:
    return f"release-{hashlib.sha256(run.encode()).hexdigest()[:16]}-{round_}-"
