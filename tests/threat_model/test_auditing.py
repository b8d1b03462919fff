"""The audit around its attacks: jobs, time, interruption, refusals. The attacks here are made up."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedblocks.blocks.examples import Examples
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings
from fedblocks.threat_model import auditing, jobs
from fedblocks.threat_model.attacks import Attack, attacks
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.exhibits import Exhibit
from fedblocks.threat_model.intervals import proportion
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject

Found = Iterator[Result | Exhibit]


@pytest.fixture(scope="module")
def done(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("audit") / "run")
    simulate(run)
    return run


@pytest.fixture
def run(done: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(done.path, tmp_path / "run")))


def found_by(name: str, subject: Subject, adversary: str = "coordinator") -> Result:
    return Result(
        attack=name, adversary=adversary, view=f"sum seen by {adversary}", statement="reconstruction",
        statistic="exact", unit="share", outcome="not found", value=proportion(0, 6),
        block=subject.blocks[0] if len(subject.blocks) == 1 else None,
    )  # fmt: skip


def made_up(name: str, run: Callable[[Subject], Found] | None = None, **changed: object) -> Attack:
    def once(subject: Subject) -> Found:
        yield found_by(name, subject)

    given = Attack(
        name=name, title=name, statement="reconstruction", adversaries=("coordinator", "insider"), sees="a sum",
        needs="nothing", cost="nothing", applies=lambda subject: None, run=run or once,
    )  # fmt: skip
    return replace(given, **changed)  # type: ignore[arg-type]


def use(monkeypatch: pytest.MonkeyPatch, *made: Attack) -> None:
    monkeypatch.setattr(jobs, "attacks", lambda: made)
    monkeypatch.setattr(jobs, "attack", lambda name: next(each for each in made if each.name == name))


ONE = AuditDesign(workers=1, minutes=0.5)


def test_shares_of_noise_promise_nothing_against_more_colluders_than_the_plan_names(
    done: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a sound run that fails for what is found in one company's share alone, and one that passes for a
    sum of all of them."""

    def both(subject: Subject) -> Found:
        for adversary in ("coordinator", "colluding-coordinator"):
            yield found_by("span", subject, adversary)

    use(monkeypatch, made_up("span", run=both))
    names, job, own = ("coordinator", "colluding-coordinator"), jobs.Job("span", 0), Subject.of(done)
    shared = replace(own, plan=own.plan.changed(mode="secure_step", colluders=1))
    everyone = replace(own, plan=own.plan.changed(mode="secure_step", colluders=len(own.private) - 1))

    def protected(subject: Subject) -> list[bool]:
        return [each.protected for each in jobs.run_job(job, subject, names) if isinstance(each, Result)]

    assert protected(own) == [True, True]
    assert protected(shared) == [True, False]
    assert protected(everyone) == [True, True]


def test_every_attack_is_run_on_every_block_or_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made_up("whole", by_block=False)
    use(monkeypatch, made_up("span"), whole, made_up("tokens", applies=lambda subject: "rank 127 >= 64"))
    audit = audit_run(run, ONE)
    keys = [each.key for each in audit.results]
    assert len(keys) == 1 + 2 * run.plan().model.blocks
    refused = [each for each in audit.results if each.outcome == "not applicable"]
    assert [each.reason for each in refused] == ["rank 127 >= 64"] * run.plan().model.blocks
    assert json.loads((run.path / "audit.json").read_text())["verdict"]["ending"] == "passed"


def test_an_attack_that_breaks_down_costs_the_others_nothing_and_says_nothing_of_values(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an audit that is lost with one attack's division by zero, and one that passes without its word."""

    def broken(subject: Subject) -> Found:
        yield found_by("odd", subject)
        raise ZeroDivisionError(f"salary {len(subject.private)}")

    use(monkeypatch, made_up("span"), made_up("odd", broken))
    audit = audit_run(run, ONE)
    ended = [each for each in audit.results if each.statistic == "ended"]
    assert {each.attack for each in ended} == {"odd"}
    assert {each.outcome for each in ended} == {"inconclusive"}
    assert all("ZeroDivisionError in test_auditing.py" in each.reason for each in ended)
    assert not any("salary" in each.reason for each in ended)
    assert audit.verdict.ending == "inconclusive"
    assert len([each for each in audit.results if each.attack == "span"]) == run.plan().model.blocks


def test_only_the_adversaries_asked_for_are_reported(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(subject: Subject) -> Found:
        yield found_by("span", subject)
        yield found_by("span", subject, "insider")

    use(monkeypatch, made_up("span", both), made_up("other", adversaries=("user",)))
    audit = audit_run(run, replace(ONE, adversaries=("insider",)))
    assert {each.adversary for each in audit.results} == {"insider"}
    assert {each.attack for each in audit.results} == {"span"}


def test_a_run_whose_companies_hold_next_to_nothing_is_audited(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """Companies of one example, of none, and of one class. Would catch an attack that ends the audit in an error for
    want of cases, takes that for a finding, or leaves it inconclusive for ever."""
    run = prepare(small, tmp_path / "run")
    for home, keep in zip(run.homes(), (1, 0, 4), strict=False):
        own = Examples.load(home / "data.npz")
        own[(own.targets == own.targets[0]).nonzero()[:keep, 0]].save(home / "data.npz")
    simulate(run)
    subject = replace(Subject.of(run, block=0), workers=1)
    assert sorted(map(len, subject.private.values()))[:2] == [0, 1]
    for name in (
        "conformance",
        "label-presence",
        "released-sums",
        "posterior-prediction",
        "epsilon-estimate",
    ):
        attack = next(each for each in attacks() if each.name == name)
        if attack.applies(subject) is None:
            found = [each for each in attack.run(subject) if isinstance(each, Result)]
            assert found
            assert {each.outcome for each in found} <= {
                "held",
                "found",
                "not found",
                "partly found",
                "not applicable",
            }


def interrupted(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, design: AuditDesign
) -> tuple[Path, list[str]]:
    """An audit of `first` and `whole` that ends before its last attack: what it keeps, and all that was mounted."""
    mounted: list[str] = []
    stops = [True]

    def noted(name: str) -> Callable[[Subject], Found]:
        def attack(subject: Subject) -> Found:
            if name == "last" and stops and stops.pop():
                raise KeyboardInterrupt
            mounted.append(f"{name} {subject.blocks}")
            yield found_by(name, subject)

        return attack

    use(
        monkeypatch, made_up("first", noted("first"), weight=3.0),
        made_up("whole", noted("whole"), weight=2.0, by_block=False), made_up("last", noted("last")),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        audit_run(run, design)
    return next((run.path / ".audit").iterdir()), mounted


def test_what_an_interrupted_audit_of_one_block_kept_is_not_that_of_all(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an attack that is run once on all blocks, and believed to have looked at those it has not."""
    _, mounted = interrupted(run, monkeypatch, replace(ONE, block=0))
    audit_run(run, ONE)
    assert "whole (0, 1)" in mounted


def test_results_of_another_job_are_not_taken_for_a_jobs_own(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a block that is never attacked because another one's results lie in its place."""
    kept, mounted = interrupted(run, monkeypatch, ONE)
    (kept / "first-block-1.json").write_bytes((kept / "first-block-0.json").read_bytes())
    before = len(mounted)
    audit = audit_run(run, ONE)
    assert "first (1,)" in mounted[before:]
    assert {each.block for each in audit.results if each.attack == "first"} == {0, 1}


def test_an_interrupted_audit_goes_on_where_it_stopped(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch work done twice, or lost; and a former audit destroyed by one that did not end."""
    calls: list[tuple[str, int]] = []
    stops = [True]

    def counted(name: str) -> Callable[[Subject], Found]:
        def attack(subject: Subject) -> Found:
            calls.append((name, subject.blocks[0]))
            if name == "second" and subject.blocks[0] == 1 and stops.pop() is True:
                raise KeyboardInterrupt
            yield found_by(name, subject)
            yield Exhibit(
                attack=name, view="sum", block=subject.blocks[0], what="image",
                arrays={"original": np.full((1, 1, 2, 2), subject.blocks[0], np.float32)},
            )  # fmt: skip

        return attack

    use(monkeypatch, made_up("first"))
    former = audit_run(run, ONE)
    use(monkeypatch, made_up("first", counted("first"), weight=2.0), made_up("second", counted("second")))
    with pytest.raises(KeyboardInterrupt):
        audit_run(run, ONE)
    assert json.loads((run.path / "audit.json").read_text()) == former.model_dump(mode="json")
    stops.append(False)
    before = list(calls)
    audit = audit_run(run, ONE)
    assert calls[len(before) :] == [("second", b) for b in range(1, run.plan().model.blocks)]
    assert len(audit.results) == 2 * run.plan().model.blocks
    with np.load(run.path / "audit_images.npz") as images:
        assert len(images.files) == 2 * run.plan().model.blocks
        assert images["second/sum/block-1/image/original"].max() == 1
    assert not (run.path / ".audit").exists()


def test_what_another_audit_left_is_not_taken(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch results of another seed in this one's audit."""
    seeds: list[int] = []

    def attack(subject: Subject) -> Found:
        seeds.append(subject.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        yield found_by("span", subject)

    use(monkeypatch, made_up("span", attack))
    with pytest.raises(KeyboardInterrupt):
        audit_run(run, ONE)
    audit_run(run, replace(ONE, seed=1))
    assert seeds[2:] == [1] * run.plan().model.blocks


def test_a_torn_file_of_a_finished_job_is_made_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def attack(subject: Subject) -> Found:
        if subject.blocks[0] == 1 and not torn:
            raise KeyboardInterrupt
        yield found_by("span", subject)

    torn: list[Path] = []
    use(monkeypatch, made_up("span", attack))
    with pytest.raises(KeyboardInterrupt):
        audit_run(run, ONE)
    torn += (run.path / ".audit").rglob("*.json")
    assert torn
    torn[0].write_text(torn[0].read_text()[:40])
    assert len(audit_run(run, ONE).results) == run.plan().model.blocks


def test_the_minutes_are_kept_and_shared_by_weight(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch one attack that eats the others' time, and an audit that outlives its budget."""
    given: dict[str, float] = {}

    def patient(name: str) -> Callable[[Subject], Found]:
        def attack(subject: Subject) -> Found:
            given[name] = subject.clock.seconds
            while not subject.clock.over:
                time.sleep(0.01)
            yield found_by(name, subject)

        return attack

    heavy = made_up("heavy", patient("heavy"), weight=3.0, by_block=False)
    use(monkeypatch, heavy, made_up("light", patient("light"), by_block=False))
    started = time.monotonic()
    audit_run(run, replace(ONE, minutes=2 / 60))
    assert time.monotonic() - started < 5
    assert given["heavy"] == pytest.approx(1.5, abs=0.2)
    assert given["light"] == pytest.approx(0.5, abs=0.2)


def test_a_job_that_ends_early_leaves_its_time_to_the_others(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def attack(subject: Subject) -> Found:
        given.append(subject.clock.seconds)
        yield found_by("light", subject)

    use(monkeypatch, made_up("heavy", weight=9.0, by_block=False), made_up("light", attack, by_block=False))
    audit_run(run, replace(ONE, minutes=1.0))
    assert given == [pytest.approx(60, abs=2)]


def test_a_job_whose_share_was_too_short_is_run_again_with_what_is_left(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an audit that ends inconclusive with most of its time unused; one that runs a job again and again;
    results of both times; and a progress that goes backwards."""
    given: list[float] = []
    told: list[float] = []

    def slow(subject: Subject) -> Found:
        given.append(subject.clock.seconds)
        while not subject.clock.over:
            time.sleep(0.01)
        subject.clock.tell(1.0, "all")
        yield found_by("slow", subject)

    quick = [made_up(f"quick-{i}", weight=2.0, by_block=False) for i in range(5)]
    use(monkeypatch, made_up("slow", slow, weight=3.0, by_block=False), *quick)
    audit = audit_run(run, replace(ONE, minutes=2 / 60), lambda share, note: told.append(share))
    assert given == [pytest.approx(2 * 3 / 13, abs=0.1), pytest.approx(2 * 10 / 13, abs=0.3)]
    assert sum(result.attack == "slow" for result in audit.results) == 1
    assert told == sorted(told)


def test_what_has_use_for_more_time_comes_after_what_leaves_some(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an audit of which half is lost: its heaviest attack is cut short, and run again with what others
    have left."""
    given: list[float] = []

    def slow(subject: Subject) -> Found:
        given.append(subject.clock.seconds)
        while not subject.clock.over:
            time.sleep(0.01)
        yield found_by("slow", subject)

    quick = [made_up(f"quick-{i}", weight=2.0, by_block=False) for i in range(5)]
    use(monkeypatch, made_up("slow", slow, weight=3.0, by_block=False, open_ended=True), *quick)
    audit_run(run, replace(ONE, minutes=1 / 60))
    assert len(given) == 1
    assert given[0] > 0.5  # of its own it has 3/13 of a second


def test_what_never_looks_at_its_clock_is_not_run_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an audit that spends its last minutes on finding what it has found."""
    runs: list[str] = []

    def deaf(subject: Subject) -> Found:
        runs.append("deaf")
        time.sleep(0.3)
        yield found_by("deaf", subject)

    quick = [made_up(f"quick-{i}", weight=9.0, by_block=False) for i in range(3)]
    use(monkeypatch, made_up("deaf", deaf, weight=9.5, by_block=False), *quick)
    audit_run(run, replace(ONE, minutes=1 / 60))
    assert runs == ["deaf"]


def test_progress_rises_to_the_whole(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def attack(subject: Subject) -> Found:
        subject.clock.tell(0.5, "half")
        yield found_by("span", subject)

    use(monkeypatch, made_up("span", attack, weight=2.0), made_up("other"))
    told: list[float] = []
    audit_run(run, ONE, lambda share, note: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"minutes": 0.0}, "minutes=0.0"),
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"adversaries": ("nobody",)}, "adversary='nobody': expected one of insider"),
        ({"workers": 0}, "workers=0"),
        ({"block": 7}, "block=7: expected one of those that the run trains: 0, 1"),
        ({"block": -1}, "block=-1"),
    ],
)
def test_a_bad_design_is_refused_and_a_former_audit_stays(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], named: str
) -> None:
    use(monkeypatch, made_up("span"))
    audit_run(run, ONE)
    before = (run.path / "audit.json").read_bytes()
    with pytest.raises(InputError) as error:
        audit_run(run, replace(ONE, **changed))  # type: ignore[arg-type]
    assert named in str(error.value)
    assert (run.path / "audit.json").read_bytes() == before


def test_an_attack_that_fails_fails_the_audit(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an audit that passes because an attack could not be mounted."""

    def broken(subject: Subject) -> Found:
        raise RunError("releases/round-0003.safetensors: damaged")
        yield found_by("span", subject)

    use(monkeypatch, made_up("span", broken))
    with pytest.raises(RunError, match="damaged"):
        audit_run(run, ONE)
    assert not (run.path / "audit.json").exists()


def test_every_attack_says_what_it_is() -> None:
    """Would catch an attack of an adversary that is none, and one that --list cannot describe."""
    rows = auditing.listed()
    assert [row["name"] for row in rows] == [each.name for each in attacks()]
    for each in attacks():
        assert set(each.adversaries) <= set(auditing.ADVERSARIES)
        assert each.adversaries
        assert all((each.title, each.sees, each.needs, each.cost))
        assert each.weight > 0
