"""constraints*.txt: every package that a set-up installs, with its version and the hashes of its wheels.

`make constraints` writes them from pyproject.toml: `uv` resolves, and of each package's files those stay that a
CPython of `PYTHONS` on Linux can install. No source distribution is among them, so nothing is ever built at a set-up.

    constraints.txt       what everybody needs, for the package and its tests; pip and setuptools too; but for PyTorch
    constraints-cuda.txt  PyTorch as the package index has it for Linux, built for CUDA, and what that needs besides
    constraints-fuzz.txt  what the extra `fuzz` needs besides
    constraints-trackers.txt  what the extra `trackers` needs besides

constraints-cpu.txt, kept by hand, is PyTorch's own CPU build: a set-up takes it where pip finds it, else the other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

PYTHONS = ("3.11", "3.12", "3.13")
ARCHITECTURES = ("x86_64", "aarch64")
FILES = ("constraints.txt", "constraints-cuda.txt", "constraints-fuzz.txt", "constraints-trackers.txt")
_HEAD = "# Written by `make constraints`.\n--only-binary :all:\n"
_CUDA = re.compile(r"(nvidia|cuda)-|(torch|triton)$")


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and hashes, of the text of such a file."""
    entries = re.findall(
        r"^(\S+)==(\S+)(?: ;.*?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", text, re.MULTILINE
    )
    return {name: (version, re.findall("[0-9a-f]{64}", hashes)) for name, version, hashes in entries}


def main(root: Path) -> None:
    before = [pins((root / file).read_text()) for file in FILES[:2] if (root / file).is_file()]
    kept = "".join(f"{name}=={version}\n" for file in before for name, (version, _) in file.items())
    least = resolved(root, kept, "test")
    names = {package["name"] for package in least}
    fuzz, trackers = (
        [package for package in resolved(root, kept, "test", extra) if package["name"] not in names]
        for extra in ("fuzz", "trackers")
    )
    base = [p for p in least if not _CUDA.match(p["name"])]
    cuda = [p for p in least if _CUDA.match(p["name"])]
    (torch,) = (package["version"] for package in cuda if package["name"] == "torch")
    if f"torch=={torch}+cpu " not in (root / "constraints-cpu.txt").read_text():
        raise SystemExit(
            f"constraints-cpu.txt: put in the version and the hashes of torch=={torch}+cpu first"
        )
    for file, packages in zip(FILES, (base, cuda, fuzz, trackers), strict=True):
        # Atheris has wheels for some targets alone; all else is for all of them.
        entries = [entry(package, everywhere=file != FILES[2]) for package in packages]
        (root / file).write_text(_HEAD + "".join(entries))


def resolved(root: Path, kept: str, *extras: str) -> list[dict[str, Any]]:
    """The packages in the form of a pylock.toml, at the versions of before where these still fit."""
    draft = root / ".venv" / "constraints"
    draft.mkdir(parents=True, exist_ok=True)
    (draft / "kept.txt").write_text(kept)
    options = ["--universal", "--python-version", PYTHONS[0], "--quiet", "--constraint", draft / "kept.txt"]
    chosen = [word for extra in extras for word in ("--extra", extra)]
    out = draft / "pylock.toml"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, *chosen, "--output-file", out]
    subprocess.run([*command, root / "pyproject.toml", "-"], input=b"pip\nsetuptools\n", check=True)
    packages: list[dict[str, Any]] = tomllib.loads(out.read_text())["packages"]
    return packages


def targets() -> list[tuple[dict[str, str], frozenset[Tag]]]:
    """(environment, tags of the wheels that fit it) for each Python and architecture."""
    found = []
    for python in PYTHONS:
        for machine in ARCHITECTURES:
            numbers = [f"manylinux_2_{minor}_{machine}" for minor in range(5, 40)]
            names = [f"manylinux{name}_{machine}" for name in ("1", "2010", "2014")]
            version = tuple(map(int, python.split(".")))
            platforms = [*numbers, *names]
            tags = {
                *cpython_tags(version, platforms=platforms),
                *compatible_tags(version, platforms=platforms),
            }
            environment = {
                "python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine,
                "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux",
                "implementation_name": "cpython", "platform_python_implementation": "CPython",
            }  # fmt: skip
            found.append((environment, frozenset(tags)))
    return found


def entry(package: dict[str, Any], *, everywhere: bool) -> str:
    """The package's lines, none if Linux does not need it; a missing wheel is an error, since nothing is built."""
    pinned, hashes = f"{canonicalize_name(package['name'])}=={package['version']}", set[str]()
    marker = Marker(package.get("marker", "python_version > '3'"))
    needed = [target for target in targets() if marker.evaluate(target[0])]
    for environment, tags in needed:
        fitting = {w["hashes"]["sha256"] for w in package["wheels"] if tags & _tags(w["url"])}
        if everywhere and not fitting:
            raise SystemExit(f"{pinned}: no wheel for {environment}")
        hashes |= fitting
    where = "" if len(needed) in (0, len(targets())) else f" ; {marker}"
    lines = [f"{pinned}{where}", *(f"--hash=sha256:{value}" for value in sorted(hashes))]
    return " \\\n    ".join(lines) + "\n" if needed else ""


def _tags(url: str) -> frozenset[Tag]:
    return parse_wheel_filename(url.rsplit("/", 1)[-1])[3]


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[2])
