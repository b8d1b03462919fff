"""Features of the blocks that a run leaves as they are, kept on the company's disk: the same bits, and one block."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.coordinating import Coordinator
from support.deployed import without_seeds
from support.full_disk import small_disk
from support.pretrained_runs import pretrained_run
from support.private_training import setting
from torch import Tensor

from fedblocks.blocks import Denoiser, build_model, digest
from fedblocks.blocks.examples import Examples, Groups
from fedblocks.client import kept_prefix
from fedblocks.client.batches import random_examples
from fedblocks.client.company import Company
from fedblocks.client.kept_prefix import KeptPrefix, draws_all, nothing_kept
from fedblocks.client.policy import Policy, load_policy
from fedblocks.client.prefix_file import PrefixFile
from fedblocks.client.readiness import LEAST_FREE, check_room
from fedblocks.client.training import train_block
from fedblocks.errors import PrivacyError, ProtocolError
from fedblocks.experiments.simulation.preparation import make_plan, prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource
from fedblocks.protocol import private_file
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.settings import Plan

COUNT = 70  # more than two passes of 32
HEADER, DIGEST = 512, 32


@dataclass
class Training:
    """A company's training of block 1; `ran`: on how many examples each pass over block 0 was made."""

    home: Path
    plan: Plan
    model: Denoiser
    data: Examples
    megabytes: int = 16
    lines: list[str] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        original = self.model.features_before

        def counted(block: int, inputs: Tensor) -> Tensor:
            self.ran.append(len(inputs))
            return original(block, inputs)

        self.model.features_before = counted  # type: ignore[method-assign]
        self.home.mkdir(mode=0o700, exist_ok=True)
        self.begun = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @property
    def path(self) -> Path:
        return self.home / "prefix.bin"

    def round(self, number: int, *, kept: bool = True) -> bytes:
        """The residues of a round, from the same state and randomness whether or not features are kept."""
        policy = Policy(company="acme", epsilon_ceiling=1e6, delta=1e-3, data=self.plan.model.kind)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.begun[name])
        prefix = KeptPrefix(self.home, self.megabytes, self.lines.append)
        given = prefix.before(self.model, 1, self.data, self.plan) if kept else nullcontext(nothing_kept)
        randomness = Randomness.from_seed(number, "round")
        train_block(self.model, 1, self.data[:2], self.plan, 3, randomness, policy)  # passes are tested once
        self.ran.clear()
        randomness = Randomness.from_seed(number, "round")
        with given as before:
            return train_block(self.model, 1, self.data, self.plan, 3, randomness, policy, before).tobytes()

    def filled(self) -> Training:
        for number in range(6):
            self.round(number)
        assert self.round(6) == self.round(6, kept=False)
        self.round(6)
        assert self.ran == []
        return self

    def agrees(self) -> bool:
        """Whether a round has the bits that it has without the file."""
        found = self.round(7)
        ran = list(self.ran)
        same = found == self.round(7, kept=False)
        self.ran[:] = ran
        return same


def training(kind: str, home: Path, **parts: dict[str, Any]) -> Training:
    changes = {"rounds": 20, "blocks": [1], "expected_batch_size": 32, **parts.pop("training", {})}
    settings = pretrained_run(kind, home.parent, training=changes, **parts)
    torch.manual_seed(0)
    model = build_model(settings.model, settings.noise)
    plan = make_plan(settings, model, "run")
    source = CryptographicSource(Randomness.from_seed(0, kind))
    return Training(home, plan, model, random_examples(settings.model.kind, COUNT, source))


@pytest.fixture
def filled(tmp_path: Path) -> Training:
    return training("vision", tmp_path / "home").filled()


@pytest.mark.parametrize("mode", ["local", "secure_step"])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "vision"])
def test_an_update_has_the_same_bits_and_soon_costs_one_block(kind: str, mode: str, tmp_path: Path) -> None:
    """Would catch features of another example, place, precision or shape of a pass; and a round that runs the
    earlier blocks on more examples than it would without the file."""
    steps = {"local_steps": 1 if mode == "secure_step" else 2}
    found = training(kind, tmp_path / "home", privacy={"mode": mode, "colluders": 1}, training=steps)
    passes = []
    for number in range(5):
        kept = found.round(number)
        passes.append(list(found.ran))
        assert kept == found.round(number, kept=False)
        assert len(passes[-1]) <= len(found.ran)
        assert {*passes[-1]} <= {*found.ran}  # of the same size
    size = passes[0][0]
    assert sum(map(len, passes)) == -(-COUNT // size)
    assert passes[-1] == []
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600


def test_own_families_with_prefix_features_have_the_same_bits(tmp_path: Path) -> None:
    """Their features are added to a part that the trained block computes, and may train."""
    own = setting("vit", "model.features=prefix", "training.blocks=[1]", examples=COUNT)
    found = Training(tmp_path / "home", own.plan, own.model, own.data)
    assert [found.round(n) for n in range(4)] == [found.round(n, kept=False) for n in range(4)]
    found.round(4)
    assert found.ran == []


def test_records_of_groups_have_the_same_bits(tmp_path: Path) -> None:
    """Would catch places of groups where records are meant, and passes of another shape: `records` a group."""
    named = {"group": "person", "records_per_group": 2}
    found = training("vision", tmp_path / "home", training=named)
    keys = (torch.arange(COUNT) // 3)[:, None].repeat(1, 4)
    found.data = replace(found.data, groups=Groups("person", keys))
    assert [found.round(n) for n in range(4)] == [found.round(n, kept=False) for n in range(4)]
    found.round(4)
    assert found.ran == []


def _row(path: Path, place: int) -> tuple[int, int]:
    """Where a row begins, and its bytes."""
    length = (path.stat().st_size - HEADER) // COUNT - DIGEST
    return HEADER + COUNT * DIGEST + place * length, length


def _change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _flip_rows(path: Path) -> None:
    for place in range(COUNT):
        _change(path, _row(path, place)[0] + 5, b"\xff\x01")


def _swap_rows(path: Path) -> None:
    """Two examples' whole rows change places, digests and all."""
    content = path.read_bytes()
    (one, length), (two, _) = _row(path, 0), _row(path, 1)
    _change(path, one, content[two : two + length])
    _change(path, two, content[one : one + length])
    table = content[HEADER : HEADER + 2 * DIGEST]
    _change(path, HEADER, table[DIGEST:] + table[:DIGEST])


def _change_header(path: Path, **told: Any) -> None:
    header = json.loads(path.read_bytes()[:HEADER])
    _change(path, 0, json.dumps(header | told).encode().ljust(HEADER))


def _reshape(path: Path) -> None:
    shape = json.loads(path.read_bytes()[:HEADER])["shape"]
    _change_header(path, shape=shape[::-1])


def _longer(path: Path, **told: Any) -> None:
    """The file is as long as the changed header says."""
    length = _row(path, 0)[1]
    _change_header(path, **told)
    os.truncate(path, HEADER + COUNT * (DIGEST + (2 * length if "dtype" in told else 0)))


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


TAMPERED: dict[str, Callable[[Path], None]] = {
    "values": _flip_rows,
    "rows swapped": _swap_rows,
    "a table of zeros": lambda path: _change(path, HEADER, bytes(COUNT * DIGEST)),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "empty": lambda path: os.truncate(path, 0),
    "shape": _reshape,
    "shape in fractions": lambda path: _change_header(path, shape=[5.0, 13.0]),
    "rows twice as long": lambda path: _longer(path, dtype="float64"),
    "rows of nothing": lambda path: _longer(path, shape=[0]),
    "type": lambda path: _change_header(path, dtype="int32"),
    "no type": lambda path: _change_header(path, dtype="nn"),
    "no JSON": lambda path: _change(path, 0, b"\xff" * HEADER),
    "JSON that is no table": lambda path: _change(path, 0, b"[]".ljust(HEADER)),
    "key": lambda path: _change_header(path, key="0" * 64),
    "a link": _link,
    "open to others": lambda path: path.chmod(0o644),
    "a folder": lambda path: (path.unlink(), path.mkdir())[1],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_file_that_was_tampered_with_changes_no_bit(filled: Training, how: str) -> None:
    """Would catch features that are believed because they are there."""
    TAMPERED[how](filled.path)
    assert filled.agrees()
    if how != "rows swapped":  # two of 70, which a batch may miss
        assert filled.ran


def test_a_file_that_is_cut_short_while_it_is_read_changes_no_bit(filled: Training) -> None:
    """Would catch a mapped file: reading past its end would kill the company's process."""
    original = filled.data.__class__.__getitem__

    class Cutting(Examples):
        def __getitem__(self, index: Any) -> Examples:
            os.truncate(filled.path, HEADER + COUNT * DIGEST)
            return original(self, index)

    whole = filled.data
    filled.data = Cutting(whole.inputs, whole.targets)
    found = filled.round(7)
    assert filled.ran
    filled.data = whole
    assert found == filled.round(7, kept=False)


def test_links_in_its_place_are_refused_by_name(filled: Training) -> None:
    """Would catch a home whose check, before every message, passes over this file."""
    private_file.check_home(filled.home)
    _link(filled.path)
    with pytest.raises(PrivacyError, match=r"prefix\.bin is a link"):
        private_file.check_home(filled.home)


def test_another_companys_or_runs_file_is_replaced(filled: Training, tmp_path: Path) -> None:
    """Of other examples, in number or values, and of the same with another earlier block."""
    other = training("vision", tmp_path / "other")
    other.data = random_examples(other.plan.model.kind, COUNT, CryptographicSource(Randomness.from_entropy()))
    shutil.copy(filled.path, other.path)
    assert other.agrees()
    assert other.ran
    before = filled.path.read_bytes()[:HEADER]
    filled.data = filled.data[: COUNT - 5]
    assert filled.agrees()
    assert filled.ran
    assert filled.path.read_bytes()[:HEADER] != before


def test_another_version_of_transformers_makes_them_anew(filled: Training, monkeypatch: Any) -> None:
    """Its code computes the layers; would catch features of before an upgrade in the middle of a run."""
    monkeypatch.setattr(kept_prefix, "version", lambda package: "0.0")
    assert filled.agrees()
    assert filled.ran


def test_a_pass_reads_as_much_whatever_was_drawn(tmp_path: Path, monkeypatch: Any) -> None:
    """Would catch a time that tells how many examples of a pass only fill it up, or were drawn before."""
    found, hashed = training("vision", tmp_path / "home"), []
    original = PrefixFile._digest
    monkeypatch.setattr(PrefixFile, "_digest", lambda *args: (hashed.append(1), original(*args))[1])

    def rows_of(places: Tensor) -> int:
        hashed.clear()
        prefix = KeptPrefix(found.home, found.megabytes, found.lines.append)
        with prefix.before(found.model, 1, found.data, found.plan) as before:
            before(places)
        return len(hashed)

    drawn = [torch.arange(20, 52).clamp(max=20 + distinct) for distinct in (0, 7, 31)]
    assert rows_of(torch.arange(32)) == 32  # those that it keeps
    begun = found.path.read_bytes()
    for places in drawn:
        _change(found.path, 0, begun)
        assert rows_of(places) == 32 + 32
    for _ in range(2):
        rows_of(drawn[0])
    assert [rows_of(places) for places in drawn] == [32] * 3


@pytest.mark.parametrize("trains", ["lora", "block"])
def test_a_changed_earlier_block_is_noticed(trains: str, tmp_path: Path) -> None:
    """Would catch a key of the plan alone: the public state differs from run to run of the same plan."""
    found = training("encoder", tmp_path / "home", model={"trains": trains}).filled()
    name = next(name for name in found.model.trainable(0, interface=False))
    found.begun[f"blocks.0.{name}"] += 0.1
    assert found.agrees()
    assert found.ran


def test_what_an_interrupted_training_has_kept_is_used(tmp_path: Path, monkeypatch: Any) -> None:
    """Would catch rows that are taken for whole because their place in the file is there."""
    found, wrote = training("vision", tmp_path / "home"), []

    class Killed(BaseException):
        pass

    original = PrefixFile._put

    def put(self: Any, content: Any, offset: int) -> None:
        wrote.append(offset)
        if len(wrote) == 20:  # an odd number of rows and digests: a row without its digest
            raise Killed
        original(self, content, offset)

    monkeypatch.setattr(PrefixFile, "_put", put)
    with pytest.raises(Killed):
        found.round(0)
    monkeypatch.undo()
    assert [path.name for path in found.home.iterdir()] == ["prefix.bin"]
    assert found.agrees()


def test_a_full_disk_costs_no_round(tmp_path: Path) -> None:
    """Nor does it leave less free than a round needs, or a part of a file."""
    with small_disk(tmp_path / "disk", 64) as disk:
        found = training("vision", disk.folder / "home")
        assert found.agrees()
        assert "this disk has no room" in found.lines[0]
        assert list(found.home.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_costs_no_round(filled: Training, monkeypatch: Any) -> None:
    """An error of the disk after the free room was looked at."""
    filled.path.unlink()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_prefix.os, "posix_fallocate", full)
    assert filled.agrees()
    assert "No space left" in filled.lines[-1]
    assert list(filled.home.iterdir()) == []


def test_a_disk_that_is_full_later_takes_its_room_back(filled: Training, tmp_path: Path) -> None:
    """Would catch a round, or a final model, that is refused for want of the room that the file takes."""
    policy = Policy(company="acme", epsilon_ceiling=1.0, delta=1e-3, data=filled.plan.model.kind)
    with small_disk(tmp_path / "disk", 100) as disk:
        company = Company(disk.folder / "home", policy)
        company.home.mkdir(mode=0o700)
        path = company.home / "prefix.bin"
        path.write_bytes(bytes(20 << 20))
        check_room(company)
        assert path.exists()
        disk.fill(LEAST_FREE - (10 << 20))
        check_room(company)
        assert not path.exists()
        disk.fill(LEAST_FREE - 1)
        with pytest.raises(ProtocolError, match="no_room"):
            check_room(company)


def test_the_companys_limit_holds(tmp_path: Path, monkeypatch: Any) -> None:
    """0 keeps nothing and removes what there is; a file above the limit is never begun, and the log says so once."""
    found = training("vision", tmp_path / "home").filled()
    found.megabytes = 0
    assert found.agrees()
    assert list(found.home.iterdir()) == []
    monkeypatch.setattr(kept_prefix, "size_of", lambda count, row: (16 << 20) + 1)
    found.megabytes, found.lines[:] = 16, []
    assert found.agrees()
    assert found.agrees()
    assert list(found.home.iterdir()) == []
    assert len(found.lines) == 1
    assert "prefix_cache_mb allows 16" in found.lines[0]


def test_a_lowered_limit_removes_a_larger_file(tmp_path: Path) -> None:
    """Would catch a limit that is looked at only when a file is begun."""
    found = training("vision", tmp_path / "home")
    randomness = Randomness.from_seed(0, "many")
    found.data = random_examples(found.plan.model.kind, 4000, CryptographicSource(randomness))
    found.round(0)
    assert found.path.stat().st_size > 1 << 20
    found.megabytes = 1
    assert found.agrees()
    assert not found.path.exists()


def test_only_what_stays_and_is_drawn_is_kept(tmp_path: Path) -> None:
    """An earlier block that learns would make the file anew each round; few rounds would not read what they wrote."""
    found = training("vision", tmp_path / "home")

    def kept(block: int = 1, **changes: Any) -> bool:
        told = found.plan.training.model_copy(update=changes)
        return draws_all(found.plan.model_copy(update={"training": told}), block, found.data)

    assert kept()
    assert not kept(blocks=(0, 1))
    assert not kept(block=0, blocks=(0,))
    assert not kept(rounds=2)  # half of the examples in each
    assert kept(rounds=3)
    assert kept(rounds=2, local_steps=2)


def test_it_goes_with_the_run(tmp_path: Path) -> None:
    """At the end of its own run, not of another; when another is joined; and what a killed process has left of it.

    Would catch derived private data that stay on the disk for good.
    """
    run = prepare(pretrained_run("vision", tmp_path, companies={"count": 5}), tmp_path / "run")
    without_seeds(run)
    home = run.companies / "company-0"
    company, coordinator = Company(home, load_policy(home / "policy.toml")), Coordinator(run)
    paths = (home / "prefix.bin", home / ".prefix.bin.0123.tmp")

    def keep() -> None:
        for path in paths:
            path.touch(mode=0o600)

    keep()
    coordinator.join()
    assert not any(path.exists() for path in paths)
    keep()
    assert not company.leave("another")
    assert all(path.exists() for path in paths)
    assert company.leave(run.plan().run)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("engine", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_simulations_companies_have_files_of_their_own_and_leave_none(
    engine: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The result is that of a run without; would catch state that companies of one process share."""
    wanted = pretrained_run("encoder", tmp_path, training={"blocks": [1], "rounds": 6, "evaluate_every": 6})
    models = []
    for protocol, megabytes in (("on", 1024), ("on", 0), ("off", 1024)):
        settings = wanted.model_copy(update={"protocol": protocol})
        run = prepare(settings, tmp_path / f"run-{protocol}-{megabytes}")
        for home in run.homes():
            path = home / "policy.toml"
            path.write_text(
                path.read_text().replace("prefix_cache_mb = 1024", f"prefix_cache_mb = {megabytes}")
            )
        assert simulate(run, engine=engine)["rounds_done"] == 6
        model = Checkpoint.load(run.checkpoints).model
        models.append(digest(model.shared, *model.blocks))
        said = "".join((home / "company.log").read_text() for home in run.homes())
        assert said.count("prefix.bin is whole") == (3 if megabytes else 0)
        assert list(run.path.rglob("*prefix.bin*")) == []
    assert len({*models}) == 1
