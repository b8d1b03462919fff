"""Settings: presets, overrides, and one-line errors naming field, value and rule."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Self

import pytest
from pydantic import TypeAdapter, model_validator
from support.presets import quick_settings

from fedblocks.blocks.settings import Part, require
from fedblocks.client.endpoint import Endpoint
from fedblocks.client.policy import load_policy
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings, preset_names
from fedblocks.privacy.secure_aggregation import Identity
from fedblocks.protocol.identity import IDENTITY_FILE, load_member, save_identity, save_roster
from fedblocks.protocol.transport.certificates import COORDINATOR, OwnCertificate
from fedblocks.server.run_folder import RunFolder
from fedblocks.server.stream import ServiceSettings
from fedblocks.settings import RunSettings, read_simulation, validated, write_simulation


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_defaults_follow_the_design(name: str) -> None:
    """Would catch a preset that no longer loads, trains the input side, or gives up a guarantee by default."""
    settings = quick_settings(name)
    p, t = settings.privacy, settings.training
    adapts = settings.model.family.startswith("pretrained-")
    assert (p.epsilon, p.mode, p.i_accept_no_dp) == (8, "secure_step" if adapts else "local", False)
    assert p.delta <= 1e-5
    # A pretrained model has no head for new classes: it learns one.
    interface = adapts and settings.model.label_side is not None
    assert (t.assignment, t.interface, t.local_steps) == ("sequential", interface, 1)
    assert settings.secure_aggregation.minimum_cohort >= 3
    assert settings.companies.dropout.rate == 0
    if settings.model.family in ("vit", "ar-lm", "recurrent-lm", "masked-lm", "tabular"):
        assert settings.noise.P_mean >= 1.0  # every block must read its input
    assert settings.total_steps == t.rounds


def test_the_first_presets_are_there() -> None:
    expected = {"digits", "ar-text", "masked-text", "recurrent-text", "dit-digits", "forecast-series"}
    assert expected <= set(preset_names())


@pytest.mark.parametrize(("assignment", "steps"), [("sequential", 12), ("parallel", 12), ("all", 36)])
def test_the_steps_of_a_company_are_counted_over_blocks_and_rounds(assignment: str, steps: int) -> None:
    overrides = ["training.rounds=4", "training.local_steps=3", f"training.assignment={assignment}"]
    assert load_settings("digits", overrides).total_steps == steps


def test_overrides_are_typed_nested_and_last_wins() -> None:
    settings = load_settings(
        "digits", ["privacy.epsilon=3", "companies.count=8", "name=mine", "companies.count=7"]
    )
    assert (settings.privacy.epsilon, settings.companies.count, settings.name) == (3.0, 7, "mine")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilom=3", ["privacy.epsilom", "3", "unknown field"]),
        ("nonsense=1", ["nonsense", "unknown field"]),
        ("privacy.epsilon=-1", ["privacy.epsilon", "-1", "greater than 0"]),
        ("privacy.epsilon=nan", ["privacy.epsilon", "nan"]),
        ("privacy.epsilon=none", ["privacy.epsilon", "None", "i_accept_no_dp"]),
        ("privacy.delta=1", ["privacy.delta", "1"]),
        ("companies.count=2", ["companies.count", "2", "minimum_cohort"]),
        ("companies.holdout=1.5", ["companies.holdout", "1.5"]),
        ("training.sampling_rate=0", ["training.sampling_rate", "0"]),
        ("secure_aggregation.minimum_cohort=2", ["secure_aggregation.minimum_cohort", "2"]),
        ("secure_aggregation.threshold=2", ["secure_aggregation.threshold", "2", "4 to 5"]),
        ("privacy.colluders=5", ["privacy.colluders", "5", "sums are of 5"]),
        ("model.blocks=4", ["model.layers", "3", "multiple of blocks"]),
        ("model.patch_size=3", ["model.patch_size", "3", "divide"]),
        ("audit.block=3", ["audit.block", "3"]),
        ("training.batches=epochs", ["training.local_steps", "1", "multiple of the 10 steps"]),
        ("training.noise_bands=2", ["training.noise_bands", "2", "epochs"]),
        ("training.rounds=many", ["training.rounds", "many"]),
        ("name=../x", ["name", "../x"]),
        ("seed", ["--set", "key=value"]),
        ("training.server_betas=[1.5, 0.9]", ["training.server_betas", "1.5", "less than 1"]),
        ("privacy.noise_multiplier=1e250", ["privacy.noise_multiplier", "1e+250", "1000000"]),
        ("seed.deep=1", ["--set", "not a table"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_settings("digits", [override])
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_unknown_presets_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="presets: ar-lm1b"):
        load_settings("digit")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="not valid TOML"):
        load_settings(str(tmp_path / "bad.toml"))
    (tmp_path / "bad.toml").write_text("name = " + "[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_settings(str(tmp_path / "bad.toml"))


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    """Windows' editors begin each of these files with one."""
    mark = b"\xef\xbb\xbf"
    (tmp_path / "preset.toml").write_bytes(mark + b'name = "mine"\n')
    assert load_settings(str(tmp_path / "preset.toml")).name == "mine"
    home = tmp_path / "home"
    (home / "transport").mkdir(parents=True)
    policy = b'company = "acme"\nepsilon_ceiling = 8.0\ndelta = 1e-5\n[data]\ninputs = [1]\ntargets = [1]\n'
    (home / "policy.toml").write_bytes(mark + policy)
    assert load_policy(home / "policy.toml").company == "acme"
    member = Identity.generate()
    save_identity(home / IDENTITY_FILE, member)
    save_roster(home / "roster.toml", {"acme": member.public})
    (home / "roster.toml").write_bytes(mark + (home / "roster.toml").read_bytes())
    assert load_member(home, "acme").name == "acme"
    (home / "transport" / "transport.toml").write_bytes(mark + b'address = "localhost:1"\n')
    OwnCertificate.create("acme").save(home / "transport")
    OwnCertificate.create(COORDINATOR).save(tmp_path / "plane")
    shutil.copy(tmp_path / "plane" / "own.pem", home / "transport" / "coordinator.pem")
    assert Endpoint.of(home).settings.address == "localhost:1"
    (tmp_path / "plane" / "transport.toml").write_bytes(mark + b'listen = "localhost:1"\n')
    assert ServiceSettings.load(tmp_path / "plane").listen == "localhost:1"


@pytest.mark.parametrize("epsilon", ["none", "2.5"])
def test_settings_and_plan_survive_the_run_folder(tmp_path: Path, epsilon: str) -> None:
    """Would catch a value that TOML cannot hold, such as no epsilon."""
    from fedblocks.blocks import build_model
    from fedblocks.experiments.simulation.preparation import make_plan

    overrides = [f"privacy.epsilon={epsilon}", "privacy.i_accept_no_dp=true"]
    settings = load_settings("digits", overrides)
    plan = make_plan(settings, build_model(settings.model, settings.noise), "r")
    folder = RunFolder(tmp_path)
    folder.write_settings(settings, plan)
    write_simulation(folder.path, settings)
    assert read_simulation(folder.path) == settings
    assert folder.settings().model_dump() == TypeAdapter(RunSettings).dump_python(settings)
    assert folder.plan() == plan
    assert folder.plan().digest() == plan.digest()


def test_a_broken_rule_keeps_value_and_rule_apart_whatever_they_hold() -> None:
    """Would catch a complaint that is made into a sentence and taken apart again at its colons."""

    class Named(Part):
        name: str

        @model_validator(mode="after")
        def _never(self) -> Self:
            require(False, "name", self.name, "expected: another = name")
            return self

    with pytest.raises(InputError) as refused:
        validated(Named, {"name": "a: b = 'c'"})
    assert str(refused.value) == """name="a: b = 'c'": expected: another = name"""


def test_overrides_of_a_mapping_are_the_values_themselves() -> None:
    """Would catch values written as text and read back: quotes, colons, none and numbers in strings."""
    source = 'a "quoted": file.npz'
    values = {"data.private.source": source, "privacy.company_clip": None, "training.rounds": 3}
    settings = load_settings("digits", values)
    assert settings.data.private.source == source
    assert settings.privacy.company_clip is None
    assert settings.training.rounds == 3
    assert settings == load_settings(
        "digits", ["privacy.company_clip=none", "training.rounds=3", f"data.private.source='{source}'"]
    )
