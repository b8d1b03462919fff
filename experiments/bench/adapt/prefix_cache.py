"""What a round costs where companies keep what the blocks before the trained one make of their examples.

The preset `minilm-text`, which trains the last of three blocks, with low-rank additions instead of biases, and three
companies of 1,280 texts. The same run twice, with and without the file (`client.kept_prefix`): processor time of the
whole process, coordinator and masks included, between rounds. The file fills up in the first rounds; the first one of
each run does not count, nor does the last, which judges the model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....client.kept_prefix import PREFIX_FILE
from ....client.policy import load_policy
from ....client.policy_file import POLICY_FILE
from ....errors import RunError
from ....server.events import Event, RoundFinished
from ....server.run_folder import RunFolder
from ...presets import load_settings
from ...simulation.preparation import prepare, read_inputs
from ...simulation.simulate import simulate

CHANGES = (
    "companies.count=3", "companies.examples=1280", "training.rounds=12", "training.evaluate_every=12",
    "pretraining.steps=1", "data.test_examples=50", "model.trains=lora", "model.lora_rank=4", "model.lora_alpha=4.0",
)  # fmt: skip
_LIMITS = (1024, 0)


def measure(seeds: int, on_progress: Callable[[str], None], preset: str = "minilm-text") -> dict[str, Any]:
    """`prefix_cache_round_ratio`: of a round with a whole file to the same round without; `..._filling_ratio`: of a
    round that still fills it; `..._mb`: of the largest file."""
    rows = [_of_seed(preset, seed, on_progress) for seed in range(seeds)]
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def _of_seed(preset: str, seed: int, on_progress: Callable[[str], None]) -> dict[str, float]:
    settings = load_settings(preset, [f"seed={seed}", *CHANGES])
    inputs, seconds, whole, largest = read_inputs(settings), dict[int, list[float]](), 0, 0
    for megabytes in _LIMITS:
        with tempfile.TemporaryDirectory(prefix="fedblocks-prefix-") as folder:
            run = prepare(settings, Path(folder) / "run", inputs=inputs)
            _limit(run, megabytes)
            rounds = _Rounds(run)
            simulate(run, [rounds])
            seconds[megabytes] = rounds.seconds
            if megabytes:
                whole, largest = rounds.whole_after, max(rounds.sizes)
        on_progress(f"seed {seed} {megabytes} MB: {' '.join(f'{each:.2f}' for each in rounds.seconds)} s")
    ratios = [kept / computed for kept, computed in zip(*(seconds[each] for each in _LIMITS), strict=True)]
    if not 1 < whole < len(ratios) - 1:
        raise RunError(
            f"the files were whole after {whole} of {len(ratios)} rounds, so there is nothing to compare"
        )
    return {
        "prefix_cache_round_ratio": statistics.median(ratios[whole:-1]),
        "prefix_cache_filling_ratio": statistics.median(ratios[1:whole]),
        "prefix_cache_mb": largest / 1e6,
    }


def _limit(run: RunFolder, megabytes: int) -> None:
    """The companies' own rule."""
    for home in run.homes():
        path = home / POLICY_FILE
        old, new = (f"prefix_cache_mb = {each}\n" for each in (load_policy(path).prefix_cache_mb, megabytes))
        path.write_text(path.read_text().replace(old, new))


class _Rounds:
    """Processor seconds of every round, and after how many of them all companies' files were whole."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._last = run, 0.0
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.whole_after = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, RoundFinished):
            return
        if event.round:  # else the public model before any
            self.seconds.append(time.process_time() - self._last)
            homes = self._run.homes()
            self.sizes += [path.stat().st_size for home in homes if (path := home / PREFIX_FILE).exists()]
            said = [f"{PREFIX_FILE} is whole" in (home / "company.log").read_text() for home in homes]
            if not self.whole_after and all(said):
                self.whole_after = event.round
        self._last = time.process_time()
