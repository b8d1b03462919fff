"""What a coordinator has apart from what a simulation adds: in types, in files, and where either is asked for."""

from __future__ import annotations

import ast
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import TypeAdapter
from support.presets import quick_settings
from typer.testing import CliRunner

import fedblocks
from fedblocks.cli.main import app
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.presets import load_settings, preset_names
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan, prepare
from fedblocks.experiments.simulation.reference import prepare_reference
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import (
    MechanismSettings,
    Plan,
    RunSettings,
    SimulationSettings,
    read_settings,
    read_simulation,
    validated,
    write_settings,
    write_simulation,
)
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.report import write_report


def keys(tables: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def as_run(settings: SimulationSettings) -> RunSettings:
    return validated(RunSettings, TypeAdapter(RunSettings).dump_python(settings))


@pytest.fixture(scope="module")
def done(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    training = small.training.model_copy(update={"rounds": 1})
    run = prepare(small.model_copy(update={"training": training}), tmp_path_factory.mktemp("done") / "run")
    simulate(run)
    return run


@pytest.fixture
def run(done: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a finished run of one round."""
    return RunFolder(Path(shutil.copytree(done.path, tmp_path / "run")))


@pytest.mark.parametrize("preset", preset_names())
def test_each_key_stands_in_one_file_and_both_together_are_the_simulation(
    preset: str, tmp_path: Path
) -> None:
    """Would catch a setting that is lost between the files, or told to a coordinator whose business it is not."""
    block = 2 if quick_settings(preset).training.blocks else 0
    changes = ["companies.dropout.rate=0.1", f"audit.block={block}", "workers=3"]
    settings = quick_settings(preset, changes)
    write_settings(tmp_path, settings)
    write_simulation(tmp_path, settings)
    assert read_settings(tmp_path) == as_run(settings)
    assert read_simulation(tmp_path) == settings
    mine, rest = (
        tomllib.loads((tmp_path / name).read_text()) for name in ("settings.toml", "simulation.toml")
    )
    assert not set(keys(mine)) & set(keys(rest))
    found = {key for key in keys(rest) if not key.startswith("data.private.")}
    dropout = {"companies.dropout.rate", "companies.dropout.phase"}
    assert found == dropout | {"companies.alpha", "companies.holdout", "companies.held_out", "workers"} | {
        "audit.minutes", "audit.block"
    }  # fmt: skip
    # A report tells its reader to take the settings of a run as they are.
    assert load_settings(str(tmp_path / "settings.toml")) == settings


def test_files_that_say_a_thing_twice_are_refused(run: RunFolder) -> None:
    """Would catch companies of which the coordinator expects another number than were invented."""
    file = run.path / "simulation.toml"
    tables = tomllib.loads(file.read_text())
    tables["companies"]["count"] = 4
    file.write_text(tomli_w.dumps(tables))
    with pytest.raises(RunError, match=r"simulation\.toml: count stands in settings\.toml already"):
        read_simulation(run.path)


@pytest.mark.parametrize("words", [["simulate", "--resume"], ["audit"], ["report"], ["account", "--spent"]])
def test_a_folder_of_an_earlier_version_is_named_as_such(run: RunFolder, words: list[str]) -> None:
    """Such a folder has everything in settings.toml; would catch a complaint about its fields one by one."""
    settings = read_simulation(run.path)
    file = run.path / "settings.toml"
    file.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    (run.path / "simulation.toml").unlink()
    done = CliRunner().invoke(app, [*words, str(run.path)])
    assert isinstance(done.exception, RunError)
    assert f"{file}: made by an earlier version of fedblocks" in str(done.exception)
    assert "\n" not in str(done.exception)
    assert load_settings(str(file)) == settings  # which the way out that it names relies on


def test_a_run_whose_companies_are_real_has_a_report_and_no_audit(run: RunFolder) -> None:
    """Would catch a coordinator's command that needs what only a simulation has."""
    (run.path / "simulation.toml").unlink()
    shutil.rmtree(run.companies)
    assert RunFolder.deployable(run.path).settings().companies.count == 5
    page = write_report(run).read_text("utf-8")
    assert "Data: public digits." in page
    assert "companies.alpha" not in page
    with pytest.raises(RunError, match="not a simulation"):
        audit_run(run, AuditDesign())


def test_the_coordinators_settings_alone_make_the_plan(small: SimulationSettings) -> None:
    model = fresh_model(small)
    plan = make_plan(as_run(small), model, "run")
    assert plan == make_plan(small, model, "run")
    with pytest.raises(InputError, match=r"companies\.alpha=1\.0: unknown field"):
        validated(RunSettings, small.model_dump(exclude={"workers", "audit", "data"}))


def test_the_reference_has_the_runs_mechanism_without_its_noise(run: RunFolder) -> None:
    """Would catch a twin whose settings tell of another clipping than its plan."""
    twin = prepare_reference(run)
    privacy, plan = twin.settings().privacy, twin.plan()
    assert (privacy.epsilon, plan.noise_multiplier) == (None, 0.0)
    kept = set(MechanismSettings.model_fields) - {"noise_multiplier", "company_clip"}
    assert privacy.model_dump(include=kept) == plan.model_dump(include=kept)
    assert plan == run.plan().changed(noise_multiplier=0.0, run="run-reference")
    assert read_simulation(twin.path).companies == read_simulation(run.path).companies


def test_the_fields_of_a_plan_keep_their_order_since_its_digest_follows_it(small: SimulationSettings) -> None:
    """Would catch digests of plans that change though the plans do not: policies name plans by them."""
    told = [
        "run", "model", "noise", "training", "delta", "max_grad_norm", "clipping", "clip_quantile",
        "noise_multiplier", "company_clip", "mode", "dropouts", "colluders", "secure_aggregation",
    ]  # fmt: skip
    assert list(Plan.model_fields) == [*told, "evaluation", "drawn"]
    assert list(make_plan(small, fresh_model(small), "run").model_dump()) == told  # none has none


def test_a_plan_with_other_values_is_validated(small: SimulationSettings) -> None:
    plan = make_plan(small, fresh_model(small), "run")
    with pytest.raises(InputError, match=r"noise_multiplier=0\.001: expected 0 or at least"):
        plan.changed(noise_multiplier=0.001)


def test_neither_side_of_the_protocol_knows_a_simulations_settings() -> None:
    """Would catch a server that reads what a real coordinator does not have."""
    package = Path(fedblocks.__file__).parent
    own = set(ast_names(package / "settings" / "simulation.py")) | {"read_simulation", "write_simulation"}
    assert "SimulationSettings" in own
    files = [file for room in ("server", "client", "protocol") for file in (package / room).rglob("*.py")]
    assert len(files) > 30
    for file in files:
        imported = {
            name.name
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not imported & own, file


def ast_names(file: Path) -> Iterator[str]:
    """What a module defines by classes and assignments."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
