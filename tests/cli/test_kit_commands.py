"""`provision`, `company request|install` and `coordinator request|install` as people and scripts meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import Done, Machine, run_command
from support.federation import COMPANIES, Federation, snapshot
from typer.testing import CliRunner

from fedblocks.cli.main import app
from fedblocks.client.endpoint import Endpoint
from fedblocks.protocol.identity import load_member
from fedblocks.server.stream import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]


def told(*words: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fedblocks(*words: str | Path) -> Done:
    """A process of its own, which also says how an error ends."""
    return run_command(list(map(str, words)), Path.cwd(), Machine())


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.at(tmp_path)


def test_bad_input_exits_2_with_one_line_and_writes_nothing(federation: Federation) -> None:
    before = snapshot(federation.office), snapshot(federation.homes)
    done = fedblocks("provision", federation.file, "--json")
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert "acme, bravo, charlie, coordinator" in line
    assert "fedblocks company request HOME --company NAME" in line
    said = json.loads(done.stdout)
    assert (said["failed"], said["exit_code"]) == ("error", 2)
    assert (snapshot(federation.office), snapshot(federation.homes)) == before


def test_both_sides_print_the_same_fingerprints(federation: Federation) -> None:
    """What is read out over the phone: would catch a fingerprint that each side computes of something else."""
    for name in COMPANIES:
        asked = told("company", "request", federation.home(name), "--company", name)
        content = Path(asked["request"]).read_bytes()
        (federation.office / f"requests/{name}.request").write_bytes(content)
        assert told("company", "request", federation.home(name))["fingerprint"] == asked["fingerprint"]
        lead = told("coordinator", "request", federation.plane)
        (federation.office / "requests/coordinator.request").write_bytes(Path(lead["request"]).read_bytes())
        federation.wants(*COMPANIES)
    made = told("provision", federation.file)
    assert made["fingerprints"]["requests"]["charlie"] == asked["fingerprint"]
    assert made["fingerprints"]["requests"]["coordinator"] == lead["fingerprint"]
    assert (made["new_version"], made["version"], made["added"]) == (True, 1, list(COMPANIES))
    spoken = made["fingerprints"]["provisioner"]
    done = told("company", "install", made["kits"]["acme"], federation.home("acme"), "--fingerprint", spoken)
    assert done["roster_fingerprint"] == made["fingerprints"]["roster"]
    assert (done["name"], done["version"], done["companies"]) == ("acme", 1, list(COMPANIES))
    plane = told(
        "coordinator", "install", made["kits"]["coordinator"], federation.plane, "--fingerprint", spoken
    )
    assert plane["roster_fingerprint"] == made["fingerprints"]["roster"]
    again = told("company", "install", made["roster"], federation.home("acme"))
    assert again["written"] == []
    unchanged = told("provision", federation.file)
    assert (unchanged["new_version"], unchanged["added"], unchanged["confirmed"]) == (False, [], [])


def test_people_are_told_what_to_do_with_what_was_made(federation: Federation) -> None:
    """On stderr; stdout has the one thing that is copied from it."""
    done = fedblocks("provision", federation.file, "--trial")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert f"read out to everybody who installs for the first time: {federation.fingerprint}" in done.stderr
    assert "with its private keys, for a trial" in done.stderr
    done = fedblocks("company", "request", federation.home("acme"), "--company", "acme")
    assert len(done.stdout.replace(" ", "").strip()) == 32
    assert "private keys stay in" in done.stderr


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["company", "request", "HOME"], "give the company's name"),
        (["company", "request", "HOME", "--company", ""], "expected a company's name"),
        (["company", "request", "HOME", "--company", "Müller GmbH"], "expected a company's name"),
        (["company", "request", "HOME", "--company", "x" * 65], "expected a company's name"),
        (["company", "request", "HOME", "--company", "coordinator"], "is the coordinator's"),
        (["company", "install", "HOME/none.zip", "HOME"], "cannot be read"),
        (["coordinator", "install", "HOME", "HOME"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_a_key_is_made(tmp_path: Path, words: list[str], rule: str) -> None:
    from fedblocks.errors import InputError

    home = tmp_path / "home"
    done = CliRunner().invoke(app, [word.replace("HOME", str(home)) for word in words])
    assert isinstance(done.exception, InputError)
    assert rule in str(done.exception)
    assert not home.exists()


def test_a_home_stays_its_company_s(tmp_path: Path) -> None:
    home = tmp_path / "home"
    told("company", "request", home, "--company", "acme")
    before = snapshot(home)
    done = CliRunner().invoke(app, ["company", "request", str(home), "--company", "bravo"])
    assert "is the home of 'acme'" in str(done.exception)
    assert snapshot(home) == before


def test_a_company_needs_few_commands() -> None:
    """By the page that companies follow: at most ten, with the agent's."""
    text = (ROOT / "docs/onboarding.md").read_text("utf-8")
    section = text.split("## At each company")[1].split("\n## ")[0]
    blocks = section.split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines() if line.strip()]
    assert any(line.startswith("fedblocks agent up") for line in lines)
    assert len(lines) <= 10


def test_a_trial_is_set_up_by_one_command_and_never_twice(tmp_path: Path) -> None:
    """Homes and the coordinator's folder as the kits leave them; bad names leave nothing behind."""
    folder = tmp_path / "trial"
    for names, options in (
        (["acme", "Acme"], []),
        (["../x"], []),
        (["coordinator"], []),
        (["acme"], ["--port", "0"]),
    ):
        done = CliRunner().invoke(app, ["trial", str(folder), *names, *options])
        assert done.exit_code != 0
        assert not folder.exists()
    made = told("trial", folder, *COMPANIES, "--port", "19443", "--superlink-port", "18000")
    assert made["companies"] == {name: str(folder / name) for name in COMPANIES}
    for name in COMPANIES:
        endpoint = Endpoint.of(folder / name)
        assert endpoint.settings.address == "127.0.0.1:19443"
        assert set(load_member(folder / name, name).roster.members) == set(COMPANIES)
    assert ServiceSettings.load(folder / "coordinator").listen == "127.0.0.1:19443"
    assert sorted(path.stem for path in (folder / "coordinator/flower").iterdir()) == list(COMPANIES)
    before = snapshot(folder)
    again = CliRunner().invoke(app, ["trial", str(folder), "delta"])
    assert "holds a trial already" in str(again.exception)
    assert snapshot(folder) == before
