"""A trial's companies get the simulation's data by the way of a real company, and its processes end in every case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from support.presets import without_training
from support.pretrained_runs import pretrained_run
from support.processes import until
from support.trials import living, rows_of

from fedblocks.blocks.examples import Examples
from fedblocks.client.home import make_home
from fedblocks.client.importing import import_data
from fedblocks.client.policy import Policy, load_policy
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import read_inputs
from fedblocks.experiments.trial import sources
from fedblocks.experiments.trial.preparing import Wish, loosened_rules, named, prepare_trial, wished
from fedblocks.experiments.trial.processes import Processes
from fedblocks.experiments.trial.sources import write_sources
from fedblocks.settings import SimulationSettings

NAMES = ["charlie", "acme", "bravo"]


@pytest.mark.parametrize(
    ("preset", "changes", "suffix"),
    [
        ("digits", ('data.private.source="digits"',), ".npz"),
        ("tabular-cancer", (), ".parquet"),
        ("ar-text", ('data.private.source="python-topics"',), ".jsonl"),
        ("minilm-text", tuple(without_training("minilm-text")), ".jsonl"),
    ],
)
def test_companies_import_the_very_examples_of_the_simulation(
    tmp_path: Path, preset: str, changes: tuple[str, ...], suffix: str
) -> None:
    """Bit for bit, by the importer that a real company uses, which holds some of them out. Would catch a part that is
    another company's, a file that is read differently than the whole, and examples that a simulation never trains on.
    """
    _import_the_very_examples(tmp_path, Wish(preset=preset, changes=changes).settings(NAMES), suffix)


def _import_the_very_examples(tmp_path: Path, settings: SimulationSettings, suffix: str) -> None:
    files = write_sources(settings, NAMES, tmp_path)
    dealt = list(read_inputs(settings).companies.values())
    for name, expected in zip(sorted(NAMES), dealt, strict=True):
        path = Path(files[name].source)
        assert path.name == f"{name}{suffix}"
        assert path.stat().st_mode & 0o077 == 0
        home = tmp_path / f"home-{name}"
        make_home(home, name, epsilon_ceiling=8.0, delta=1e-5, **loosened_rules(settings))
        model, contrast = settings.model, settings.data.match_contrast
        found = import_data(home, files[name], model, contrast, held_out=0.5)
        assert found.held_out > 0 < found.examples
        parts = [Examples.load(home / file) for file in ("data.npz", "held_out.npz")]
        assert rows_of(*parts) == rows_of(expected)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_texts_for_pretrained_models_are_dealt_as_the_simulation_deals_them(
    kind: str, tmp_path: Path
) -> None:
    """A contract that names the classes; a decoder's own tokenizer. Would catch a class that is written as another's
    name, and a stretch of text that the tokenizer cuts at other places."""
    _import_the_very_examples(tmp_path, pretrained_run(kind, tmp_path), ".jsonl")


def test_fields_are_written_where_a_contract_finds_them(tmp_path: Path) -> None:
    """Would catch a field that is named by a path and written under another name."""
    lines = [
        {"body": {"text": f"w{2 + i % 20} w{2 + i % 7}", "kind": {"label": "abc"[i % 3]}}} for i in range(240)
    ]
    source = tmp_path / "named.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    named = {"kind": "labelled-text", "text": "body.text", "label": "body.kind.label", "labels": [*"abc"]}
    plain = pretrained_run("encoder", tmp_path)
    data = plain.data.model_dump() | {"private": {"source": str(source), "contract": named}}
    _import_the_very_examples(tmp_path, pretrained_run("encoder", tmp_path, data=data), ".jsonl")


def test_rules_allow_what_the_preset_asks_for_and_say_so(tmp_path: Path) -> None:
    """Of a pretrained model, heads and shared noise. Would catch companies that refuse the preset which they are
    made for, and a rule that is loosened without a word."""
    folder, lines = tmp_path / "trial", list[str]()
    changes = (*without_training("vit-hf-digits"), "data.private.source=digits", "pretraining.steps=1",
               "training.rounds=1", "training.evaluate_every=1")  # fmt: skip
    wish = Wish(preset="vit-hf-digits", changes=changes)
    made = prepare_trial(folder, NAMES, wish, port=19443, say=lines.append)
    said = "\n".join(lines)
    usual = Policy.model_fields
    for name, home in made.trial.homes.items():
        policy = load_policy(home / "policy.toml")
        assert list(policy.broken(made.run.plan())) == []
        loosened = {
            rule
            for rule in loosened_rules(wish.settings(NAMES))
            if getattr(policy, rule) != usual[rule].default
        }
        assert loosened == {"allow_interface", "allow_shared_noise", "pretrained"}
        for rule in loosened:
            assert f"{name}'s policy.toml" in said
            assert f"{rule} = " in said


def test_files_that_are_read_as_other_examples_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a trial whose companies train on something else than the preset's data, without a word."""
    settings = Wish(preset="tabular-cancer").settings(NAMES)
    shorter = {"tables": lambda s, i: lambda rows, e: sources._tables(s, i)(rows[1:], e)}
    monkeypatch.setattr(sources, "_WRITERS", shorter)
    with pytest.raises(InputError, match="not read as the same examples"):
        write_sources(settings, NAMES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_cut_up_are_refused_by_name(tmp_path: Path) -> None:
    """Windows of a series overlap; and sources of other companies are nobody's."""
    with pytest.raises(InputError, match=r"\[data.private.sources\]"):
        write_sources(Wish(preset="forecast-series").settings(NAMES), NAMES, tmp_path)
    own = ['data.private.sources={x="a.npz", y="b.npz", z="c.npz"}']
    with pytest.raises(InputError, match="acme, bravo, charlie"):
        write_sources(load_settings("digits", own), NAMES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_what_it_was_begun_as(tmp_path: Path) -> None:
    """Would catch a second start that mixes two presets, or companies that the roster does not have."""
    folder = tmp_path / "trial"
    with pytest.raises(InputError, match="name its companies"):
        named(folder, [])
    with pytest.raises(InputError, match="give --preset too"):
        wished(folder, None, ["seed=1"])
    for names, changes, rule in (
        (["acme", "bravo"], [], "companies.count"),
        (["acme", "bravo", "data"], [], "another folder"),
        (NAMES, ["privacy.epsilon=-1"], "privacy.epsilon"),
    ):
        with pytest.raises(InputError, match=rule):
            prepare_trial(folder, names, Wish(preset="digits", changes=tuple(changes)), port=19443)
        assert not folder.exists()
    wish = Wish(preset="digits", changes=SMALL)
    made = prepare_trial(folder, NAMES, wish, port=19443)
    assert not made.finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert wished(folder, None, []) == wish
    assert named(folder, []) == NAMES
    again = prepare_trial(folder, named(folder, []), wish, port=20000)
    assert (again.run.path, again.examples) == (made.run.path, made.examples)
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"company.log", "steps.sqlite", "trial.toml"}
    with pytest.raises(InputError, match="is of digits --set"):
        wished(folder, "digits", [])
    with pytest.raises(InputError, match="has charlie, acme, bravo"):
        named(folder, ["acme", "delta"])
    (folder / "bravo/policy.toml").write_text(
        (folder / "bravo/policy.toml").read_text().replace("epsilon_ceiling = 8.0", "epsilon_ceiling = 0.5")
    )
    with pytest.raises(InputError, match=r"company check, bravo.*fedblocks company check \S+bravo --plan"):
        prepare_trial(folder, NAMES, wish, port=19443)


def test_processes_are_named_with_how_they_ended(tmp_path: Path) -> None:
    """Real commands: one that succeeds, one that is refused, one that is killed; each with its log."""
    with Processes() as running:
        running.start("good", ["presets"], tmp_path / "good")
        running.start("bad", ["presets", "--nothing"], tmp_path / "bad")
        until(lambda: running.ended("good") == 0 and running.ended("bad") == 2, "both have ended")
        assert "digits" in (tmp_path / "good").read_text()
        assert (tmp_path / "good").stat().st_mode & 0o077 == 0
        assert running.how("bad").startswith("ended with exit code 2: ")
        running.start("killed", ["provision", tmp_path / "pipe"], tmp_path / "killed")
        assert running.ended("killed") is None
        os.kill(running.pid("killed"), signal.SIGKILL)
        until(lambda: running.ended("killed") is not None, "the killed one has ended")
        assert running.how("killed").startswith("was ended by SIGKILL")


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    """SIGKILL to the starter, which can do nothing any more. The command would go on for ever: its input is a pipe
    that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys, time; from pathlib import Path; from fedblocks.experiments.trial.processes import Processes; "
        f"running = Processes(); running.start('x', ['provision', {str(tmp_path / 'pipe')!r}], Path('/dev/null')); "
        "print(running.pid('x'), flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        until(lambda: "pipe" in living(tmp_path).get(pid, ""), "the command runs")
        starter.kill()
        until(lambda: not living(tmp_path), "nothing is left")
    finally:
        starter.kill()
        starter.wait()
