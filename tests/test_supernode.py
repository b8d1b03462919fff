"""What a company lets a SuperLink make it run: the installed app, and nothing that a bundle brings along."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import takes_all
from deployed import flower_run, guarded, project_of, unguarded, without_seeds
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException
from typer.testing import CliRunner

import fedblocks
from fedblocks.cli import app as cli
from fedblocks.client.supernode import check_bundle, installed_apps_only
from fedblocks.config import Settings
from fedblocks.errors import InputError, PrivacyError, ProtocolError
from fedblocks.experiments.preparation import prepare

ROOT = Path(fedblocks.__file__).parent


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """As `flwr run .` makes it."""
    return build_fab_from_disk(ROOT)


def remade(bundle: bytes, **changes: bytes | str) -> bytes:
    """The bundle with files added or replaced."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as old:
        files: dict[str, bytes | str] = {name: old.read(name) for name in old.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in (files | changes).items():
            new.writestr(name, content)
    return out.getvalue()


def project_file(bundle: bytes, old: str, new: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(bundle)) as files:
        text = files.read("pyproject.toml").decode()
    assert text.count(old) == 1
    return remade(bundle, **{"pyproject.toml": text.replace(old, new)})


def refused(content: bytes) -> None:
    with pytest.raises(ProtocolError) as error:
        check_bundle(content)
    assert error.value.code == "foreign_code"


def test_the_projects_own_bundle_has_no_code_and_is_taken(bundle: bytes) -> None:
    """Would catch a pyproject.toml that lets code into the bundle: every company would refuse every run."""
    assert check_bundle(bundle) == ("fedblocks/fedblocks", fedblocks.__version__)


@pytest.mark.parametrize(
    "name",
    [
        "app.py",
        "fedblocks/__init__.py",
        "torch.so",
        "x.pth",
        "lib/y.pyc",
        "../up.py",
        "README.md/x",
        "notes.md",
    ],
)
def test_a_bundle_with_any_other_file_is_refused(bundle: bytes, name: str) -> None:
    refused(remade(bundle, **{name: "x"}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fedblocks.client.app:app", "fedblocks.experiments.bench.transport_apps:party"),
        ("fedblocks.client.app:app", "os:system"),
        ("fedblocks.client.app:app", "fedblocks.client.app:guarded"),
        ('clientapp = "', 'agentapp = "x:y"\nclientapp = "'),
        ('serverapp = "fedblocks.server.app:app"', ""),
    ],
)
def test_a_bundle_that_names_another_app_is_refused(bundle: bytes, old: str, new: str) -> None:
    refused(project_file(bundle, old, new))


def test_a_second_file_of_the_same_name_is_refused(bundle: bytes) -> None:
    """Would catch a check of one pyproject.toml where Flower unpacks the other."""
    out = io.BytesIO(bundle)
    with zipfile.ZipFile(out, "a") as more, pytest.warns(UserWarning, match="Duplicate"):
        more.writestr("pyproject.toml", b"")
    refused(out.getvalue())


def test_a_bundle_that_unpacks_to_more_than_it_should_is_refused(bundle: bytes) -> None:
    refused(remade(bundle, **{"README.md": bytes(8 << 20)}))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x00" * 100])
def test_what_is_no_bundle_is_refused(bundle: bytes, content: bytes) -> None:
    refused(content)
    refused(bundle[:-30])
    refused(remade(bundle, **{"pyproject.toml": content}))


def connection(run: Run, later: Run, fab: Fab) -> Any:
    """What a SuperLink says of a run, the first time and after that, and the bundle it gives."""
    said = iter([run])

    @contextmanager
    def connect() -> Iterator[tuple[Any, ...]]:
        yield 7, *([None] * 2), lambda run_id: next(said, later), lambda fab_hash, run_id: fab, *([None] * 3)

    return connect


def told(run: Run, fab: Fab, log: list[str], later: Run | None = None) -> Fab:
    """As the SuperNode asks: for the run, then for its bundle."""
    with installed_apps_only(connection(run, later or run, fab), log.append)() as (
        _,
        _,
        _,
        get_run,
        get_fab,
        *_,
    ):
        given: Fab = get_fab(get_run(1).fab_hash, 1)
        return given


@pytest.fixture
def honest(bundle: bytes) -> tuple[Run, Fab]:
    fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
    identity, version = check_bundle(bundle)
    empty = Run.create_empty(1)
    return replace(
        empty, fab_id=identity, fab_version=version, fab_hash=fab.hash_str, primary_task_type="flwr-serverapp"
    ), fab


def test_an_honest_run_passes(honest: tuple[Run, Fab]) -> None:
    log: list[str] = []
    assert told(*honest, log) is honest[1]
    assert not log


@pytest.mark.parametrize(
    "changes",
    [
        {"fab_id": "../../tmp/x"},
        {"fab_id": "fedblocks/other"},
        {"fab_version": "0.1.0/../../x"},
        {"primary_task_type": "flwr-agentapp"},
        {"fab_hash": "0" * 64},
    ],
)
def test_a_run_that_is_not_its_bundles_is_dropped(honest: tuple[Run, Fab], changes: dict[str, str]) -> None:
    """Would catch a bundle that is checked, and another folder that Flower then loads the app from."""
    log: list[str] = []
    run, fab = honest
    with pytest.raises(RunNotRunningException):
        told(replace(run, **changes), fab, log, later=run)
    assert log[0].startswith("refused run 1: foreign_code")


def test_the_command_refuses_what_it_sets_itself(small: Settings, tmp_path: Path) -> None:
    run = prepare(small, tmp_path / "run")
    home = run.companies / "company-0"
    for extra in (["--node-config", 'company-home="/"'], ["--allow-runtime-dependency-installation"]):
        assert isinstance(CliRunner().invoke(cli, ["supernode", str(home), *extra]).exception, InputError)
    # Its policy is a simulation's.
    assert isinstance(CliRunner().invoke(cli, ["supernode", str(home), "--insecure"]).exception, PrivacyError)


@pytest.mark.slow
@pytest.mark.skipif(" " in sys.prefix, reason="Flower's SuperLink cannot start from a path with a space")
@pytest.mark.parametrize("node", [guarded, unguarded])
def test_code_in_a_bundle_does_not_get_at_a_company(small: Settings, tmp_path: Path, node: Any) -> None:
    """Flower's own SuperNode runs it, which shows that the attack is one."""
    run = prepare(small, tmp_path / "run")
    home = without_seeds(run)[0]
    project = project_of(takes_all.__file__, tmp_path / "app", companies="takes_all:companies")
    printed = flower_run(project, [node(home)], 'out=""', tmp_path)
    if node is unguarded:
        assert (home / "taken").is_file(), printed
    else:
        assert not (home / "taken").exists()
        assert (
            "foreign_code" in (home / "company.log").read_text()
            or "refused run" in (home / "company.log").read_text()
        )
