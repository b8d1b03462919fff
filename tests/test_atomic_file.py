"""A path holds the old content or the new, whatever interrupts: a failing write, SIGKILL, another process."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedblocks import atomic_file
from fedblocks.atomic_file import creating, creating_folder, replacing, sync_folder, write


class Interrupted(BaseException):
    """Not an `Exception`, as KeyboardInterrupt is not."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(bits: int) -> Any:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new", b""):
        write(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("wanted", [0o600, 0o666])
def test_a_file_has_its_mode_from_the_first_byte_on(tmp_path: Path, wanted: int) -> None:
    """Would catch a secret that is written openly and narrowed afterwards, or one that keeps an old file's mode."""
    path = tmp_path / "file"
    with umask(0o000):
        path.touch(mode=0o644)
        with replacing(path, mode=wanted) as draft:
            assert mode(draft) == wanted
            draft.write_bytes(b"x")
        with creating_folder(tmp_path / "folder", mode=0o700) as folder:
            assert mode(folder) == 0o700
    assert mode(path) == wanted
    with umask(0o077):
        write(path, b"x")
    assert mode(path) == 0o600


@pytest.mark.parametrize("error", [OSError, Interrupted])
@pytest.mark.parametrize("way", [replacing, creating, creating_folder])
def test_a_failing_write_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, way: Callable[[Path], AbstractContextManager[Path]], error: type[BaseException]
) -> None:
    path = tmp_path / "path"
    if way is replacing:
        path.write_bytes(b"old")
    before = names(tmp_path)

    def failing() -> None:
        with way(path) as draft:
            (draft / "file" if draft.is_dir() else draft).write_bytes(b"half")
            raise error

    with pytest.raises(error):
        failing()
    assert names(tmp_path) == before
    if way is replacing:
        assert path.read_bytes() == b"old"


def test_an_existing_file_is_never_created_again(tmp_path: Path) -> None:
    """Also if it comes while the content is written, and if it is a link to nothing."""
    path = tmp_path / "file"
    with pytest.raises(FileExistsError), creating(path):
        path.write_bytes(b"first")
    with pytest.raises(FileExistsError), creating(path):
        pytest.fail("is refused before the content is made")
    assert path.read_bytes() == b"first"
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError), creating(tmp_path / "link"):
        pytest.fail("is refused before the content is made")
    assert names(tmp_path) == ["file", "link"]


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError, match="not empty"), creating_folder(tmp_path / "folder") as draft:
        (draft / "new").touch()
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """Would catch a checkpoint that is removed before the one in its place is on the disk."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(Interrupted), creating_folder(path, replace=True):
        raise Interrupted
    assert names(path) == ["old"]
    with creating_folder(path, replace=True) as draft:
        (draft / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """Would catch a temporary path that both write to: the second to finish would rename a file that is gone."""
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert path.exists() is False
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


_WAYS = {
    "replacing": "replacing(path)",
    "creating": "creating(path)",
    "creating_folder": "creating_folder(path)",
}


@pytest.mark.parametrize("way", _WAYS)
def test_a_killed_writer_leaves_what_was_there(tmp_path: Path, way: str) -> None:
    """Between the write and the rename; the next writer succeeds, and a sole one removes what is left over."""
    path = tmp_path / "path"
    if way == "replacing":
        path.write_bytes(b"old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from fedblocks.atomic_file import *\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "def killed(*paths): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = os.link = pathlib.Path.rename = killed\n"
        f"with {_WAYS[way]} as draft:\n"
        "    (draft / 'file' if draft.is_dir() else draft).write_bytes(b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    leftover = [name for name in names(tmp_path) if name != "path"]
    assert len(leftover) == 1
    assert leftover[0].startswith(".path.")
    assert leftover[0].endswith("tmp")
    if way == "replacing":
        assert path.read_bytes() == b"old"
        with replacing(path, sole_writer=True) as draft:
            draft.write_bytes(b"new")
        assert path.read_bytes() == b"new"
        assert names(tmp_path) == ["path"]
    elif way == "creating":
        assert not path.exists()
        with creating(path) as draft:
            draft.write_bytes(b"new")
        assert path.read_bytes() == b"new"
    else:
        assert not path.exists()
        with creating_folder(path) as draft:
            assert names(draft) == []
        assert names(tmp_path) == ["path"]


@pytest.mark.parametrize("at", [".path.tmp", "path"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_lies_where_a_folder_is_to_be_goes_and_what_a_link_leads_to_stays(
    tmp_path: Path, at: str, kind: str
) -> None:
    """Would catch an error after the work, as where checkpoints were moved to another disk and a link left here."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if kind == "file":
        (tmp_path / at).touch()
    else:
        (tmp_path / at).symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
    with creating_folder(tmp_path / "path", replace=True) as draft:
        (draft / "new").touch()
    assert names(tmp_path / "path") == ["new"]
    assert not (tmp_path / "path").is_symlink()
    assert names(elsewhere) == ["kept"]
    assert names(tmp_path) == ["elsewhere", "path"]


def test_a_sole_writer_removes_leftovers_of_its_own_path_only(tmp_path: Path) -> None:
    for name in (".a.1.tmp", ".a[1].1.tmp", ".b.1.tmp", "a.1.tmp"):
        (tmp_path / name).touch()
    with replacing(tmp_path / "a[1]", sole_writer=True):
        pass
    assert names(tmp_path) == [".a.1.tmp", ".b.1.tmp", "a.1.tmp", "a[1]"]


@pytest.mark.parametrize("way", _WAYS)
def test_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Would catch a missing fsync, of the content or of the folder, by which a power loss leaves an empty file."""
    events: list[str] = []

    def watch(owner: Any, name: str, say: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def watched(*given: Any) -> Any:
            events.append(say(*given))
            return original(*given)

        monkeypatch.setattr(owner, name, watched)

    def synced(descriptor: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            return "content" if path.read_bytes() == b"new" else "something else"
        return "folder" if path == tmp_path else "inner folder"

    watch(os, "fsync", synced)
    for owner, name in ((os, "replace"), (os, "link"), (Path, "rename")):
        watch(owner, name, lambda *paths: "name")
    with getattr(atomic_file, way)(tmp_path / "path") as draft:
        (draft / "file" if draft.is_dir() else draft).write_bytes(b"new")
    inner = ["inner folder"] if way == "creating_folder" else []
    assert events == ["content", *inner, "name", "folder"]


def test_a_folder_is_synced_with_all_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    seen = set()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        seen.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    sync_folder(tmp_path)
    assert seen == {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"}
