"""`agent unit` and `coordinator unit`: systemd reads what was meant, and an image is built from what is there."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from click import Group
from support.commands import Machine, run_command

import fedblocks
from fedblocks.cli.main import app
from fedblocks.cli.service_files import NEEDS_A_PERSON, SOURCES
from fedblocks.errors import InputError

ROOT = Path(fedblocks.__file__).parent
# What a shell, systemd or a container engine could take for something else.
NAMES = ["home", "a b", "50%n %% %h", "$HOME ${x} $$", "it's", "; touch x", "-", "ünï", "#", "@", "a=b", "~"]


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    folder = tmp_path / "plane"
    folder.mkdir()
    (folder / "transport.toml").write_text('listen = "0.0.0.0:9443"\n')
    (tmp_path / "runs").mkdir()
    return folder


def a_home(folder: Path, rules: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text(f'company = "acme"\n{rules}')
    return folder


def unit(*words: object) -> dict[str, str]:
    done = run_command([*map(str, words), "--json"], Path.cwd(), Machine())
    assert done.exit_code == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def as_systemd_reads_it(text: str, folder: Path, name: str = "tried.service") -> dict[str, str]:
    """Its own dump of the unit: "Command Line", "ReadWritePaths" and so on; fails where it ignores a line."""
    (folder / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", name], cwd=folder, capture_output=True, text=True, timeout=60,
        env=os.environ | {"SYSTEMD_LOG_LEVEL": "debug"}, check=False,
    )  # fmt: skip
    about = [line for line in done.stderr.splitlines() if re.search(rf"{name}:\d", line)]
    # An older libseccomp than systemd was built with lacks some names; they are not ours.
    assert not [line for line in about if "Failed to parse system call" not in line], about
    dump = done.stdout.partition(f"Unit {name}:")[2]
    found = re.findall(r"^\s*([A-Za-z ]+): ?(.*)$", dump, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return dict(reversed(found))  # the first of each name


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_starts_the_command_for_this_home_and_lets_it_write_there_alone(
    tmp_path: Path, name: str
) -> None:
    """Oracle: systemd's own reading. Would catch a path that is split at a blank, a specifier, a variable."""
    home = a_home(tmp_path / name / "home")
    found = as_systemd_reads_it(unit("agent", "unit", home)["text"], tmp_path)
    # systemd shows words as a shell would read them; shlex knows no \\$ and no \\` within quotes.
    words = shlex.split(found["Command Line"].replace("\\$", "$").replace("\\`", "`"))
    assert words == [str(Path(sys.executable).with_name("fedblocks")), "agent", "up", str(home)]
    assert found["ReadWritePaths"] == str(home)
    assert found["Description"] == "fedblocks agent of acme"
    assert found["User"] == pwd.getpwuid(home.stat().st_uid).pw_name


@needs_systemd
def test_the_units_are_hardened_and_only_what_a_person_must_mend_ends_them(
    plane: Path, tmp_path: Path
) -> None:
    """Oracle: systemd's own rating. Would catch a line that systemd does not know, or a rule that is dropped."""
    home = a_home(tmp_path / "home")
    for given in (("agent", "unit", home), ("coordinator", "unit", plane, "--runs-dir", tmp_path / "runs")):
        text = unit(*given)["text"]
        as_systemd_reads_it(text, tmp_path)
        rated = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager", "./tried.service"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        kept = {rule["json_field"] for rule in json.loads(rated.stdout) if rule["set"] is True}
        assert {
            "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateDevices", "ProtectKernelModules",
            "ProtectProc", "CapabilityBoundingSet_CAP_SYS_ADMIN", "CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER",
            "SystemCallFilter_mount", "SystemCallFilter_debug", "RestrictNamespaces_user", "RestrictSUIDSGID",
            "RestrictAddressFamilies_OTHER", "SystemCallArchitectures",
        } <= kept  # fmt: skip
        assert f"\nRestartPreventExitStatus={' '.join(map(str, NEEDS_A_PERSON))}\n" in text
        assert "\nRestart=on-failure\n" in text


@pytest.mark.parametrize(
    ("where", "protect_home", "private_tmp"),
    [
        ("/srv/h", "yes", "yes"),
        ("/home/u/h", "read-only", "yes"),
        ("/tmp/h", "yes", "no"),
        ("/var/tmp/h", "yes", "no"),
    ],
)  # fmt: skip
def test_what_systemd_would_hide_is_not_hidden_where_the_home_lies(
    where: str, protect_home: str, private_tmp: str
) -> None:
    """Would catch a service that cannot see its own home."""
    from fedblocks.cli.service_files import ServiceFile

    home = Path(where)
    made = ServiceFile(
        group="agent", name="n", description="d", words=("agent", "up", home), writable=(home,),
        places=("/srv/home",), user="u", uid=1, gid=1, extras="agent",
    )  # fmt: skip
    text = made.systemd(Path("/opt/bin/fedblocks"))
    assert f"\nProtectHome={protect_home}\n" in text
    assert f"\nPrivateTmp={private_tmp}\n" in text


def test_a_path_that_a_unit_cannot_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Would catch a line of somebody else's choice in a unit that root starts."""
    to = tmp_path / "made.service"
    for name in ('a"b', "a\\b", "a\nExecStartPre=/bin/x", "a\tb", "a\x1b[31m", "a\u2028b", "a\u202eb"):
        home = a_home(tmp_path / name)
        for form in ("systemd", "container"):
            words = ["agent", "unit", str(home), "--format", form, "--to", str(to)]
            done = run_command(words, tmp_path, Machine())
            assert done.exit_code == 2, (name, form)
            assert not to.exists()
    home = a_home(tmp_path / "a:b")
    words = ["agent", "unit", str(home), "--format", "container", "--json"]
    assert run_command(words, tmp_path, Machine()).exit_code == 2
    home = tmp_path / "named"
    home.mkdir()
    (home / "policy.toml").write_text('company = "x\\nExecStartPre=/bin/x"\n')
    assert run_command(["agent", "unit", str(home)], tmp_path, Machine()).exit_code == 2


def test_a_unit_runs_as_the_folders_owner_and_overwrites_nothing(plane: Path, tmp_path: Path) -> None:
    home, to = a_home(tmp_path / "home"), tmp_path / "acme.service"
    words = ["agent", "unit", str(home), "--to", str(to)]
    assert run_command([*words, "--user", "nobody"], tmp_path, Machine()).exit_code == 2
    assert run_command([*words, "--executable", str(tmp_path / "none")], tmp_path, Machine()).exit_code == 2
    assert not to.exists()
    assert run_command(words, tmp_path, Machine()).exit_code == 0
    before = to.read_bytes()
    assert run_command(words, tmp_path, Machine()).exit_code == 2
    assert to.read_bytes() == before
    given = ["coordinator", "unit", str(plane), "--runs-dir", str(tmp_path / "none")]
    assert run_command(given, tmp_path, Machine()).exit_code == 2
    cuda = a_home(tmp_path / "cuda", 'device = "cuda:0"\n')
    assert "PrivateDevices=no" in unit("agent", "unit", cuda)["text"]


def instructions(text: str) -> list[tuple[str, str]]:
    """A container file's instructions, as their name and the rest; comments left out, lines joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def test_an_image_is_built_from_files_that_are_there_and_starts_a_command_that_is_there(
    plane: Path, tmp_path: Path
) -> None:
    """Would catch a folder of the package that an image lacks, and an option or a command that is gone."""
    runs = ("--runs-dir", tmp_path / "runs")
    for given in (("agent", "unit", a_home(tmp_path / "home")), ("coordinator", "unit", plane, *runs)):
        found = instructions(unit(*given, "--format", "container")["text"])
        copies = [rest.split()[:-1] for name, rest in found if name == "COPY" and "--from" not in rest]
        copied = [word for words in copies for word in words]
        for word in copied:
            assert list(ROOT.glob(word)), word
        wanted = [rest for name, rest in found if name == "RUN" and "pip download" in rest]
        assert all("--require-hashes" in rest and "--no-deps" in rest for rest in wanted)
        required = [re.search(r"--requirement (\S+)", rest) for rest in wanted]
        assert [each and each[1] for each in required] == ["constraints.txt", "constraints-cpu.txt"]
        (install,) = (rest for name, rest in found if name == "RUN" and "pip install" in rest)
        assert "--no-index" in install
        extra = re.findall(r"\[(\w+)\]", install)[0]
        metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extra in metadata["optional-dependencies"]
        (user,) = (rest for name, rest in found if name == "USER")
        assert user == f"{tmp_path.stat().st_uid}:{tmp_path.stat().st_gid}"
        (entry,) = (json.loads(rest) for name, rest in found if name == "ENTRYPOINT")
        group: Group = typer.main.get_command(app)  # type: ignore[assignment]
        command = group.commands[entry[1]].commands[entry[2]]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in entry if word.startswith("--")} <= options
        volumes = next(json.loads(rest) for name, rest in found if name == "VOLUME")
        assert [word for word in entry if word.startswith("/")] == volumes
        assert [rest for name, rest in found if name == "EXPOSE"] == (
            ["9443"] if given[0] == "coordinator" else []
        )


def test_an_image_has_every_package_and_what_installing_needs() -> None:
    """Would catch a new folder of the package that nobody copies, and a hash-less way in."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = tools["tool"]["setuptools"]["packages"]
    assert {name.split(".")[1] for name in packages if "." in name} == set(SOURCES)
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^setuptools==", pinned, re.MULTILINE)  # builds the package, with no index to go to
    assert tools["build-system"]["build-backend"].startswith("setuptools")


def test_the_refusal_of_a_word_says_how_to_mend_it() -> None:
    from fedblocks.cli.service_files import quoted

    with pytest.raises(InputError, match="rename it"):
        quoted('a"b')
    assert quoted("50% off") == '"50%% off"'
