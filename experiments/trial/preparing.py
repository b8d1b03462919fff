"""From a preset and some names to companies with kits, data, rules and ledgers, and a planned run.

FOLDER/
    trial.toml         the preset and what was laid over it
    provisioner/       federation.toml, rosters, kits, everybody's private keys
    data/              each company's own file of the preset's private data
    NAME/              a company's home
    coordinator/       the coordinator's folder
    runs/              its runs

Every step is skipped whose file is there already, so whatever interrupted it, the same call goes on.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict

from ...client.company import Company
from ...client.decisions import LEDGER_FILE
from ...client.doctor import examine
from ...client.home import make_home
from ...client.importing import DATA_FILE, import_data
from ...client.policy import Policy
from ...client.policy_file import POLICY_FILE
from ...errors import InputError
from ...protocol import fingerprints, private_file
from ...protocol.federation.keys import make_folder
from ...protocol.federation.settings import FederationSettings
from ...protocol.federation.trial import DATA, RUNS, Trial, federation_file, installed, set_up
from ...protocol.identity import ROSTER_FILE, load_roster
from ...protocol.transport.address import split
from ...server.run_folder import RunFolder
from ...settings import SimulationSettings, parsed_toml, read_text, validated
from ..presets import load_settings
from ..simulation.planning import for_companies, plan_run
from ..simulation.preparation import OnStep, asked_of_companies, new_run
from .sources import write_sources

TRIAL_FILE = "trial.toml"


class Wish(BaseModel):
    """`trial.toml`: what the run of a trial is made of. `changes` are laid over the preset, as in `--set`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    changes: tuple[str, ...] = ()

    def settings(self, companies: Sequence[str]) -> SimulationSettings:
        """Those of a simulation with as many companies."""
        return load_settings(self.preset, [*self.changes, f"companies.count={len(companies)}"])


@dataclass(frozen=True)
class Prepared:
    """A trial that only needs its processes."""

    folder: Path
    trial: Trial
    run: RunFolder
    examples: dict[str, int]

    @property
    def finished(self) -> bool:
        rows = self.run.metrics()
        return bool(rows) and rows[-1]["round"] == self.run.plan().training.rounds


def wished(folder: Path, preset: str | None, changes: Sequence[str]) -> Wish | None:
    """The trial of the folder, or the one that is asked for; none if neither names a preset.

    Raises: InputError where the folder's trial is another one.
    """
    path = folder / TRIAL_FILE
    before = validated(Wish, parsed_toml("trial", path, read_text("trial", path))) if path.is_file() else None
    if preset is None:
        if changes:
            raise InputError("--set", changes[0], "changes a preset: give --preset too")
        return before
    given = Path(preset)
    asked = Wish(preset=str(given.resolve()) if given.suffix == ".toml" else preset, changes=tuple(changes))
    if before is not None and before != asked:
        rule = f"the trial in {folder} is of {_shown(before)}; leave these options out to go on with it"
        raise InputError("--preset", preset, rule)
    return asked


def named(folder: Path, companies: Sequence[str]) -> list[str]:
    """The companies of the folder's trial, or those that are asked for. Raises: InputError where they differ."""
    path = federation_file(folder)
    if not path.is_file():
        if not companies:
            raise InputError("COMPANIES", None, f"there is no trial in {folder} yet: name its companies")
        return list(companies)
    before = FederationSettings.load(path).companies
    if companies and sorted(companies) != sorted(before):
        raise InputError("COMPANIES", ", ".join(companies), f"the trial in {folder} has {', '.join(before)}")
    return before


def check_port(folder: Path, port: int | None) -> None:
    """Raises: InputError where `port` is given and the folder's trial has another one for the data plane."""
    path = federation_file(folder)
    if port is not None and path.is_file():
        address = FederationSettings.load(path).coordinator.address
        if split(address)[1] != port:
            raise InputError(
                "--port", port, f"the trial in {folder} has {address}; to change it, edit {path}"
            )


def prepare_trial(
    folder: Path,
    companies: Sequence[str],
    wish: Wish,
    *,
    port: int,
    say: Callable[[str], None] = lambda line: None,
    on_step: OnStep = lambda step: None,
) -> Prepared:
    """Provision, make homes, import, plan and check. `port`: of the data plane, if the trial is a new one.

    Raises:
        InputError: names what cannot be used, or what `company check` has found, with how to mend it.
    """
    settings = wish.settings(companies)
    there = federation_file(folder).is_file()
    trial = installed(folder) if there else set_up(folder, companies, port=port)
    content = trial.provisioned.roster.content
    say(f"Provisioned {', '.join(content.companies)} and a coordinator at {content.coordinator.address}")
    private_file.write(folder / TRIAL_FILE, tomli_w.dumps(wish.model_dump()).encode())
    make_companies(folder, trial, settings, say)
    run = _run(folder, trial, settings, say, on_step)
    if len(run.metrics()) <= 1:
        check_companies(trial, run)
        say("company check finds nothing that would stop the run")
    examples = {name: len(Company.deployed(home).data()) for name, home in trial.homes.items()}
    return Prepared(folder, trial, run, examples)


def make_companies(
    folder: Path, trial: Trial, settings: SimulationSettings, say: Callable[[str], None]
) -> None:
    """Rules, data and a ledger for each home that lacks them: `company init`, `company import`, `ledger create`."""
    lacking = [home for home in trial.homes.values() if not (home / DATA_FILE).is_file()]
    sources = {}
    if lacking:
        make_folder(folder / DATA)
        sources = write_sources(settings, list(trial.homes), folder / DATA)
    ceiling, delta = settings.privacy.epsilon or 0.0, settings.privacy.delta
    others = loosened_rules(settings)
    for name, home in trial.homes.items():
        if not os.path.lexists(home / POLICY_FILE):
            make_home(home, name, epsilon_ceiling=ceiling, delta=delta, **others)
            if others:
                rules = ", ".join(f"{rule} = {json.dumps(value)}" for rule, value in others.items())
                say(f"{name}'s policy.toml allows what the preset asks for, beside the usual: {rules}")
        if home in lacking:
            found = import_data(
                home, sources[name], settings.model, settings.data.match_contrast,
                held_out=settings.companies.held_out,
            )  # fmt: skip
            kept = f"{found.held_out:,} of them to judge models by"
            say(
                f"{name} has imported {found.examples + found.held_out:,} examples, {kept}: {sources[name].source}"
            )
        if not os.path.lexists(home / LEDGER_FILE):
            Company.deployed(home).create_ledger()


def loosened_rules(settings: SimulationSettings) -> dict[str, Any]:
    """The rules that the run needs and a first policy does not have. A real company decides on each by itself."""
    asked = asked_of_companies(settings).items()
    return {rule: value for rule, value in asked if value != Policy.model_fields[rule].default}


def _run(
    folder: Path, trial: Trial, settings: SimulationSettings, say: Callable[[str], None], on_step: OnStep
) -> RunFolder:
    """The run that is planned already, or a new one."""
    runs = folder / RUNS
    planned = sorted(path.parent for path in runs.glob("[!.]*/plan.json"))
    if planned:
        return RunFolder.deployable(planned[-1])
    roster = load_roster(trial.coordinator / ROSTER_FILE)
    run = plan_run(for_companies(settings, roster), roster, new_run(runs, settings), on_step=on_step)
    say(f"Planned {run.path}, from public data alone")
    return run


def check_companies(trial: Trial, run: RunFolder) -> None:
    """`company check` at each company. Raises: InputError with the first error that is found."""
    plan, spoken = run.plan(), fingerprints.of_provisioner(trial.provisioned.roster.signer)
    for name, home in trial.homes.items():
        found = [
            each for each in examine(home, plan, fingerprint=spoken, connect=False) if each.level == "error"
        ]
        if found:
            again = f"fedblocks company check {shlex.quote(str(home))} --plan {shlex.quote(str(run.path))}"
            raise InputError(f"company check, {name}", found[0].name, f"{found[0]} ({again})")


def _shown(wish: Wish) -> str:
    return " ".join([wish.preset, *(f"--set {change}" for change in wish.changes)])
