"""The wheel: complete, free of what does not belong, and it runs outside this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import fedblocks

ROOT = Path(fedblocks.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], check=True, timeout=300)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_preset_and_template_and_nothing_else(wheel: Path) -> None:
    """Would catch a folder missing from the package list, or tests and environments shipped along."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    kept = (".py", ".pyi", ".proto", ".toml", ".md", ".j2", ".css", ".typed")
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
