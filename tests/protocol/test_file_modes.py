"""Nobody but its owner may use a company's files: from the moment they are made, and checked at every message."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.coordinating import Coordinator
from typer.testing import CliRunner

from fedblocks.cli.main import app as cli
from fedblocks.client.company import Company
from fedblocks.client.policy import load_policy
from fedblocks.errors import PrivacyError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.reference import prepare_reference
from fedblocks.protocol import private_file
from fedblocks.protocol.messages import TRAIN, refused
from fedblocks.protocol.transport.certificates import OwnCertificate
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[str]:
    return [str(path) for path in (folder, *folder.rglob("*")) if mode(path) & 0o077]


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The widest that is common: what a program does not narrow itself, others may read."""
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.fixture
def run(small: SimulationSettings, tmp_path: Path) -> RunFolder:
    return prepare(small, tmp_path / "run")


def test_nothing_that_a_company_has_is_open_to_others(run: RunFolder) -> None:
    """After a whole round: data, rules, keys, ledger, steps, log, shared state, side files."""
    app = Coordinator(run)
    app.trained(app.session())
    homes = [*run.companies.iterdir(), *prepare_reference(run).companies.iterdir()]
    for home in homes:
        assert mode(home) == 0o700
        assert open_to_others(home) == []
    names = {path.name for path in (run.companies / "company-0").iterdir()}
    expected = {"policy.toml", "roster.toml", "identity.key", "data.npz"}
    assert expected | {"ledger.sqlite", "steps.sqlite", "company.log"} <= names
    assert any(name.startswith("shared-") for name in names)
    assert mode(run.path) == 0o700


def test_nothing_is_made_open_and_narrowed_afterwards(
    small: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch the moment in between, in which another user opens the file and keeps it open."""
    narrowed = []
    chmod = os.chmod

    def watched(path: Any, bits: int, **named: Any) -> None:
        if mode(Path(path)) & 0o077:
            narrowed.append(str(path))
        chmod(path, bits, **named)

    monkeypatch.setattr(os, "chmod", watched)
    app = Coordinator(prepare(small, tmp_path / "run"))
    app.trained(app.session())
    assert narrowed == []
    assert open_to_others(app.run.companies / "company-0") == []


@pytest.mark.parametrize("name", ["ledger.sqlite", "steps.sqlite", "company.log", "shared-x.safetensors"])
def test_what_fedblocks_wrote_is_narrowed_again(run: RunFolder, name: str) -> None:
    path = run.companies / "company-0" / name
    path.touch()
    path.chmod(0o664)
    app = Coordinator(run)
    assert refused(app.join()[1]) is None
    assert mode(path) == 0o600


@pytest.mark.parametrize("name", ["", "data.npz", "identity.key", "policy.toml", "roster.toml"])
@pytest.mark.parametrize("bits", [0o040, 0o002])
def test_what_the_company_wrote_is_refused_by_name_with_what_to_do(
    run: RunFolder, name: str, bits: int
) -> None:
    """At every phase, and in the log; would catch private data that another user of the machine has read."""
    app = Coordinator(run)
    request = app.train_request(app.session()).to_record()
    home = run.companies / "company-0"
    path = home / name
    good = mode(path)
    path.chmod(good | bits)
    advice = f"chmod {good:o} {path}"
    with pytest.raises(PrivacyError, match=advice):
        Company(home, load_policy(home / "policy.toml")).check_files()
    assert refused(app.join()[1]) == "privacy"
    assert refused(app.ask(1, TRAIN, request)) == "privacy"
    assert app.charges() == 0
    assert advice in (home / "company.log").read_text()
    path.chmod(good)
    assert refused(app.join()[1]) is None


def started(home: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, str(home)])


@pytest.fixture
def home(run: RunFolder) -> Path:
    """With a data plane, as `transport` makes it: nothing of it is open either."""
    home = run.companies / "company-0"
    plane = home / "transport"
    for folder in (plane, run.path / "plane"):
        OwnCertificate.create("company-0").save(folder)
    assert open_to_others(home) == []
    shutil.copy(run.path / "plane" / "own.pem", plane / "coordinator.pem")
    (plane / "coordinator.pem").chmod(0o644)
    (plane / "transport.toml").touch(mode=0o644)
    checked(home)
    return home


def checked(home: Path) -> None:
    Company(home, load_policy(home / "policy.toml")).check_files()


_PLANE = ["transport.toml", "own.pem", "coordinator.pem", "own.key"]


@pytest.mark.parametrize("name", ["", *_PLANE])
def test_nobody_else_may_say_where_and_as_whom_a_company_dials(home: Path, name: str) -> None:
    """Would catch an address or a pinned certificate that another user has replaced."""
    path = home / "transport" / name
    path.chmod(mode(path) | 0o020)
    with pytest.raises(PrivacyError, match=f"chmod {'600' if name else '700'} {path}$"):
        checked(home)


@pytest.mark.parametrize(
    "name",
    ["data.npz", "identity.key", "policy.toml", "roster.toml", "ledger.sqlite", "steps.sqlite", "company.log",
     "transport", *(f"transport/{name}" for name in _PLANE)],
)  # fmt: skip
def test_a_link_is_refused_and_its_target_left_as_it_is(home: Path, tmp_path: Path, name: str) -> None:
    """Would catch a check, or a chmod, of what a link points to: it lies in a folder that nobody has checked."""
    target, company = tmp_path / "elsewhere", Company(home, load_policy(home / "policy.toml"))
    (home / name).touch(exist_ok=True)
    shutil.move(home / name, target)
    (home / name).symlink_to(target)
    with pytest.raises(PrivacyError, match=f"{name} is a link .*mv TARGET {home / name}$"):
        company.check_files()
    target.chmod(0o666)
    with pytest.raises(PrivacyError, match=f"{name} is a link"):
        company.check_files()
    assert mode(target) == 0o666
    (home / name).unlink()
    (home / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(PrivacyError, match=f"{name} is a link"):
        company.check_files()


@pytest.mark.parametrize("name", ["", "data.npz", "identity.key", "ledger.sqlite", "transport/own.key"])
def test_what_belongs_to_another_user_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Would catch a file of mode 600 that somebody else may write, or open to others once it was checked.

    Where the tests may not give a file away, the rest of the home is: this user is then another.
    """
    path = home / name
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
        advice = f"belongs to user 4711, this is user 0: chown 0 {path}$"
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        advice = "this is user 4711: chown 4711 "
    with pytest.raises(PrivacyError, match=advice):
        checked(home)


def test_a_home_that_others_may_replace_is_refused(home: Path, tmp_path: Path) -> None:
    """Would catch a home that is closed in a folder that is open: another user puts a home of his own there.

    Also around a link by which the home is found. With the sticky bit, as in /tmp, nobody can.
    """
    for bits in (0o020, 0o002):
        home.parent.chmod(0o700 | bits)
        with pytest.raises(PrivacyError, match=f"chmod go-w {home.parent}$"):
            checked(home)
        home.parent.chmod(0o1700 | bits)
        checked(home)
    around = tmp_path / "around"
    around.mkdir(mode=0o700)
    (around / "home").symlink_to(home)
    checked(around / "home")
    around.chmod(0o777)
    with pytest.raises(PrivacyError, match=f"chmod go-w {around}$"):
        checked(around / "home")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_exported_rows_are_for_their_owner_alone(home: Path, tmp_path: Path, name: str) -> None:
    to = tmp_path / name
    assert CliRunner().invoke(cli, ["ledger", "export", str(home), str(to)]).exit_code == 0
    assert mode(to) == 0o600


@pytest.mark.parametrize(
    "words",
    [("transport", "agent"), ("supernode",), ("ledger", "create"), ("ledger", "accept")],
    ids=" ".join,
)
def test_commands_that_start_a_company_refuse_too(
    run: RunFolder, tmp_path: Path, words: tuple[str, ...]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(run.companies / "company-0", home)
    policy = home / "policy.toml"
    policy.write_text(
        "\n".join(line for line in policy.read_text().splitlines() if "simulation_seed" not in line)
    )
    (home / "data.npz").chmod(0o644)
    done = started(home, *words)
    assert isinstance(done.exception, PrivacyError)
    assert f"chmod 600 {home / 'data.npz'}" in str(done.exception)


def test_a_secret_is_never_written_over(tmp_path: Path) -> None:
    private_file.create(tmp_path / "key", b"one")
    with pytest.raises(FileExistsError):
        private_file.create(tmp_path / "key", b"two")
    assert (tmp_path / "key").read_bytes() == b"one"
    assert mode(tmp_path / "key") == 0o600
