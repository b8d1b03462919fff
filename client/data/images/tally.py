"""What image files are to become, and what was done to how many of them on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from ....blocks.settings import ImageSettings
from ....settings.contract import ImageContract
from ..findings import Findings, counted

MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an image is to become: (channels, size, size) in [0, 1]."""

    size: int
    channels: int
    fit: Literal["refuse", "stretch", "crop", "pad"] = "refuse"
    background: Literal["white", "black"] = "white"
    bits: int | None = None

    @classmethod
    def of(cls, model: ImageSettings, contract: ImageContract) -> Target:
        return cls(
            size=model.image_size,
            channels=model.channels,
            fit=contract.fit,
            background=contract.background,
            bits=contract.bits,
        )


@dataclass
class Tally:
    """What was done to how many images, how large they were, and which could not be read."""

    changed: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def report(self, findings: Findings, target: Target) -> None:
        for text, count in self.changed.items():
            findings.note(f"{counted(count, 'image')}: {text}")
        report_sizes(self.sizes, target, findings)
        if self.broken:
            named = ", ".join(self.broken[:MOST_NAMED])
            more = f" and {len(self.broken) - MOST_NAMED:,} more" if len(self.broken) > MOST_NAMED else ""
            findings.note(
                f"left out, since not readable: {counted(len(self.broken), 'image')} ({named}{more})"
            )


def report_sizes(sizes: Counter[tuple[int, int]], target: Target, findings: Findings) -> None:
    """Which sizes there were (width, height), and what becomes of those that are not the model's."""
    if not sizes:
        return
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    shown = [f"{w}x{h}" for w, h in dict.fromkeys((ordered[0], ordered[-1]))]
    findings.fact("sizes", " to ".join(shown))
    wanted = (target.size, target.size)
    oblong = sum(count for (w, h), count in sizes.items() if w != h)
    verbs = {"crop": "cropped to their middle", "pad": f"padded with {target.background}"}
    if oblong:
        how = verbs.get(target.fit, "stretched")
        findings.note(f"{counted(oblong, 'image')}: not square, {how}")
    other = sum(count for size, count in sizes.items() if size != wanted)
    if other:
        others = [size for size in ordered if size != wanted]
        shown = [f"{w}x{h}" for w, h in dict.fromkeys((others[0], others[-1]))]
        findings.note(
            f"{counted(other, 'image')}: resized from {' to '.join(shown)} to {target.size}x{target.size}"
        )
