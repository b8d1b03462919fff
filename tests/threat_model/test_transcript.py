"""The transcript of what was released: it tells the run's own story, and refuses any other."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fedblocks.blocks import digest
from fedblocks.errors import RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server import coordinator
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.release_log import Header, ReleaseLog
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model.audit_file import read_audit_file
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.transcript import Transcript

CHANGES = {
    "sequential": {},
    "all": {"assignment": "all"},
    "fedadam": {"server_optimizer": "fedadam", "server_learning_rate": 0.01},
}


def made(small: SimulationSettings, folder: Path, rounds: int = 3, **training: object) -> RunFolder:
    own = small.training.model_copy(update={"rounds": rounds, **training})
    return prepare(small.model_copy(update={"training": own}), folder)


@pytest.fixture(scope="module")
def done(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made(small, tmp_path_factory.mktemp("done") / "run")
    simulate(run)
    return run


@pytest.fixture
def run(done: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(done.path, tmp_path / "run")))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_sums_through_the_server_optimiser_give_every_checkpoint_bit_for_bit(
    change: dict[str, object], small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the checkpoints that the run itself has saved. Would catch a sum that is stored rounded, in another
    order, of another round, or with a wrong state before."""
    run = made(small, tmp_path / "run", **change)
    saved: dict[int, tuple[bytes, ...]] = {}
    save = Checkpoint.save

    def noted(self: Checkpoint, folder: Path) -> None:
        saved[self.round] = tuple(digest(block) for block in self.model.blocks)
        save(self, folder)

    monkeypatch.setattr(Checkpoint, "save", noted)
    simulate(run)
    saved[0] = tuple(digest(block) for block in Checkpoint.load(run.checkpoints, 0).model.blocks)
    releases = list(Transcript.of(run))
    assert [(r.round, r.block) for r in releases] == [
        (round_, block)
        for round_ in (1, 2, 3)
        for block in ((0, 1) if "assignment" in change else ((round_ - 1) % 2,))
    ]
    for release in releases:
        assert digest(release.states[release.block]) == saved[release.round - 1][release.block]
        assert release.mean_update.dtype == torch.float64
        assert release.cohort == release.survivors == tuple(f"company-{i}" for i in range(5))
    assert {file.stat().st_mode & 0o777 for file in run.releases.iterdir()} == {0o600}


def test_a_run_that_was_killed_between_sum_and_checkpoint_has_a_whole_transcript(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a sum kept twice, one of a round that was run again, or a round without its sum."""
    run = made(small, tmp_path / "run")
    write = ReleaseLog.write

    def killed(self: ReleaseLog, *args: object) -> None:
        write(self, *args)  # type: ignore[arg-type]
        if args[1] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(coordinator.ReleaseLog, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate(run)
    assert [header.round for header in Transcript.of(run).headers] == [1]  # round 2 has no checkpoint
    (run.releases / ".round-0002-block-1.safetensors.0.tmp").touch()
    simulate(run)
    assert [release.round for release in Transcript.of(run)] == [1, 2, 3]
    assert len(list(run.releases.iterdir())) == 3


def test_a_coordinator_keeps_sums_where_it_is_asked_to_and_simulations_unasked(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Would catch sums that lie about in a real run that never asked for them."""
    run = made(small, tmp_path / "off", rounds=1)
    (run.path / "settings.toml").write_text(
        "releases = false\n" + (run.path / "settings.toml").read_text("utf-8"), "utf-8"
    )
    simulate(run)
    assert not run.releases.exists()
    with pytest.raises(RunError, match="no transcript: set releases = true"):
        Transcript.of(run)
    assert not ReleaseLog(run.releases).begins(wanted=True, done=1)  # never from the middle of a run


def rewritten(path: Path, sum_: torch.Tensor | None = None, sealed: bool = True, **changes: object) -> None:
    """The file with another sum or header; `sealed`: with the digest that goes with it."""
    with safe_open(path, "pt") as file:
        raw = json.loads(file.metadata()["release"])
        tensor = file.get_tensor("sum").clone() if sum_ is None else sum_
    header = Header.model_validate_json(json.dumps(raw | changes))
    if sealed:
        header = header.sealed(tensor.view(torch.uint8).numpy())
    save_file({"sum": tensor}, path, {"release": header.model_dump_json()})


def flipped(path: Path, sealed: bool) -> None:
    with safe_open(path, "pt") as file:
        tensor = file.get_tensor("sum").clone()
    tensor[2] ^= 1  # bit 16 of the first value: more than float32 rounds away
    rewritten(path, tensor, sealed)


def nan_in(path: Path) -> None:
    with safe_open(path, "pt") as file:
        length = json.loads(file.metadata()["release"])["length"]
    rewritten(path, torch.full((length,), float("nan")))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another run": (lambda p: rewritten(p, run="other"), "run='other': expected .*of another run"),
    "another plan": (lambda p: rewritten(p, plan="00"), "plan='00': expected .*of another run"),
    "missing": (Path.unlink, "file='round-0002-block-1.*is missing"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "file='round-0002-block-1.*a folder, a pipe or a device"),
    "NaN": (nan_in, "sum='torch.float32 with values that are not finite': expected the packed residues"),
    "shape": (lambda p: rewritten(p, torch.zeros(7, dtype=torch.uint8)), r"sum=\(7,\): .*values of 22 bits"),
    "length": (lambda p: rewritten(p, length=7), r"sum=\(.*\): 7 values of 22 bits are"),
    "changed": (lambda p: flipped(p, sealed=False), "digest='.*': expected .*the file was changed"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:90]), "cannot be read"),
    "duplicate": (
        lambda p: shutil.copy(p, p.with_name("round-00002-block-1.safetensors")),
        "name='round-00002-block-1.safetensors': expected round-NNNN-block-B.safetensors, one file a sum",
    ),
    "duplicate of a round": (
        lambda p: shutil.copy(p, p.with_name("round-0003-block-0.safetensors")),
        r"round, block=\(2, 1\): the file of these is",
    ),
    "no such round": (
        lambda p: (
            shutil.copy(p, p.with_name("round-0002-block-0.safetensors"))
            and rewritten(p.with_name("round-0002-block-0.safetensors"), block=0)
        ),
        r"round, block=\(2, 0\): the metrics tell of no sum",
    ),
    "survivors": (lambda p: rewritten(p, survivors=["company-0"]), "survivors=.*the metrics say"),
    "stranger": (lambda p: rewritten(p, survivors=["eve"]), r"survivors=\('eve',\): expected some of"),
    "small cohort": (lambda p: rewritten(p, cohort=["company-0"]), "cohort=.*expected 3 or more"),
    "status": (
        lambda p: rewritten(p, status="oversized_sum"),
        "status='oversized_sum': the metrics say done",
    ),
    "field": (
        lambda p: save_file({"sum": torch.zeros(1)}, p, {"release": '{"round": "2"}'}),
        "run=.*required",
    ),
}


@pytest.mark.parametrize(("harm", "says"), TAMPERED.values(), ids=TAMPERED)
def test_what_is_not_this_runs_transcript_is_refused_by_file_field_value_and_rule(
    run: RunFolder, harm: Callable[[Path], object], says: str
) -> None:
    """Would catch an attack over rounds on something that the run never released; an audit, too, is refused before it
    writes anything."""
    path = run.releases / "round-0002-block-1.safetensors"
    harm(path)
    with pytest.raises(RunError, match=rf"releases/round-[0-9]+-block-.*: {says}") as caught:
        Transcript.of(run)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=re.escape(str(caught.value))):
        Subject.of(run)


def test_a_sum_that_was_changed_with_its_digest_does_not_lead_to_the_next_state(run: RunFolder) -> None:
    """Would catch a forger who computes the digest anew: the states that the companies were sent bear witness."""
    flipped(run.releases / "round-0001-block-0.safetensors", sealed=True)
    with pytest.raises(
        RunError, match=r"round-0003-block-0.*before='.*': the sums of the rounds before lead to"
    ):
        list(Transcript.of(run))


def test_a_last_sum_that_was_changed_does_not_lead_to_the_checkpoint(run: RunFolder) -> None:
    flipped(run.releases / "round-0003-block-0.safetensors", sealed=True)
    with pytest.raises(RunError, match=r"round-0003: blocks='.*': the sums lead to another state"):
        list(Transcript.of(run))


@pytest.mark.parametrize(
    "tasks", ["none", [1], [{"round": 2, "block": 1, "status": "done"}], [{"round": "2", "block": 1}]]
)
def test_metrics_whose_tasks_are_none_are_refused_by_line(run: RunFolder, tasks: object) -> None:
    """Would catch a traceback, without a word on the file that was changed."""
    rows = [json.loads(line) for line in run.metrics_file.read_text("utf-8").splitlines()]
    rows[2]["tasks"] = tasks
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(RunError, match="line 3: not a round's metrics"):
        Transcript.of(run)


def test_an_audit_of_changed_sums_is_refused_and_the_former_one_kept(run: RunFolder) -> None:
    """Would catch a report on sums that were never released: all files agree with their own digests here."""
    design = AuditDesign(workers=1, minutes=0.05, adversaries=("auditor",), block=0)
    former = audit_run(run, design)
    flipped(run.releases / "round-0001-block-0.safetensors", sealed=True)
    with pytest.raises(RunError, match="the sums of the rounds before lead to"):
        audit_run(run, design)
    assert read_audit_file(run) == former
