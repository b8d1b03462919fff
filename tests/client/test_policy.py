"""A company's rules: the first policy.toml, and what each rule refuses."""

from __future__ import annotations

import os
import re
import stat
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from support.presets import quick_settings

from fedblocks.blocks.size import parameters_of
from fedblocks.client.home import make_home
from fedblocks.client.policy import LARGEST_MODEL, Policy, load_policy
from fedblocks.client.policy_file import declare_data, first_policy
from fedblocks.errors import InputError, PolicyRefusal
from fedblocks.experiments.presets import preset_names
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan
from fedblocks.settings import DataKind, Plan, SimulationSettings

KIND = DataKind(inputs=(3,), targets=(), target_classes=2)


@pytest.fixture(scope="module")
def plan(small: SimulationSettings) -> Plan:
    return make_plan(small, fresh_model(small), "run-1")


def policy(plan: Plan, **rules: object) -> Policy:
    values = {"company": "acme", "epsilon_ceiling": 8.0, "delta": 1e-5, "data": plan.model.kind}
    return Policy.model_validate(values | rules)


def test_a_first_policy_names_and_explains_every_rule(tmp_path: Path) -> None:
    """Would catch a rule that is added to the policy and not to the file, and a value that the file cannot hold."""
    text = first_policy("acme", 8.0, 1e-5)
    for name, field in Policy.model_fields.items():
        if name in ("data", "simulation_seed"):
            continue
        assert re.search(rf"^(# )?{name} = ", text, re.MULTILINE), name
        comment = field.description
        assert comment is not None
        assert comment.split()[0] in text
    path = tmp_path / "policy.toml"
    path.write_text(text)
    assert declare_data(tmp_path, KIND)
    assert load_policy(path) == Policy(company="acme", epsilon_ceiling=8.0, delta=1e-5, data=KIND)


def test_every_rule_that_is_left_open_can_be_set_as_its_example_shows(tmp_path: Path) -> None:
    """Would catch an example in a comment that is refused when it is uncommented."""
    text = first_policy("acme", 8.0, 1e-5)
    opened = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE).replace(
        "0123...  64 hexadecimal digits", "0" * 64
    )
    (tmp_path / "policy.toml").write_text(opened)
    declare_data(tmp_path, KIND)
    found = load_policy(tmp_path / "policy.toml")
    unset = {name for name, value in found if value is None}
    assert unset == {"simulation_seed"}


def test_a_first_policy_admits_the_presets_of_every_family(tmp_path: Path) -> None:
    """Would catch safe defaults with which no run can ever begin (shared noise and models that are
    larger need a rule of their own)."""
    seen = set()
    for name in preset_names():
        settings = quick_settings(name)
        large = parameters_of(settings.model) > LARGEST_MODEL
        if settings.model.family in seen or settings.privacy.mode == "secure_step" or large:
            continue
        seen.add(settings.model.family)
        own = Policy(company="acme", epsilon_ceiling=8.0, delta=1e-5, data=settings.model.kind)
        plan = Plan.of(
            settings, "r", edges=settings.noise.edges or (), noise_multiplier=1.0, company_clip=1.0, bits=22
        )
        own.check(plan)
    assert len(seen) > 4


def test_a_home_is_the_owners_alone_and_nothing_is_overwritten(tmp_path: Path) -> None:
    """Would catch a wide umask, a policy replaced, and a folder that others can write to being taken."""
    before = os.umask(0)
    try:
        made = make_home(tmp_path / "a/acme", "acme", epsilon_ceiling=1.0, delta=1e-6)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    text = made.read_text()
    with pytest.raises(InputError, match="already"):
        make_home(made.parent, "acme", epsilon_ceiling=2.0, delta=1e-6)
    assert made.read_text() == text
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(InputError, match="chmod 700"):
        make_home(tmp_path / "open", "acme", epsilon_ceiling=1.0, delta=1e-6)
    with pytest.raises(InputError, match="company"):
        make_home(tmp_path / "b", "no/name", epsilon_ceiling=1.0, delta=1e-6)
    assert not (tmp_path / "b").exists()


def test_data_that_is_declared_is_never_changed(tmp_path: Path) -> None:
    """Would catch an import of the wrong file that widens what plans a company accepts."""
    (tmp_path / "policy.toml").write_text(first_policy("acme", 8.0, 1e-5))
    with pytest.raises(InputError, match="company import"):
        load_policy(tmp_path / "policy.toml")
    assert declare_data(tmp_path, KIND)
    text = (tmp_path / "policy.toml").read_text()
    assert not declare_data(tmp_path, KIND)
    with pytest.raises(InputError, match="declares other data"):
        declare_data(tmp_path, DataKind(inputs=(4,), targets=(), target_classes=2))
    assert (tmp_path / "policy.toml").read_text() == text


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ({"minimum_noise_multiplier": 1e3}, "minimum_noise_multiplier"),
        ({"least_colluders": 4}, "least_colluders"),
        ({"largest_max_grad_norm": 0.5}, "largest_max_grad_norm"),
        ({"largest_model": 10}, "largest_model"),
        ({"most_steps": 1}, "most_steps"),
        ({"data": KIND}, "data"),
        ({"delta": 1e-6}, "delta"),
        ({"minimum_cohort": 4}, "minimum_cohort"),
        ({"plans": ["0" * 64]}, "plans"),
    ],
)
def test_a_plan_is_refused_by_the_name_of_the_rule(plan: Plan, rules: dict[str, object], rule: str) -> None:
    """Would catch a rule that is never looked at, and a refusal that names another."""
    policy(plan).check(plan)
    with pytest.raises(PolicyRefusal) as caught:
        policy(plan, **rules).check(plan)
    assert caught.value.rule == rule


def test_a_pinned_plan_is_accepted_under_any_runs_name_and_in_no_other_form(plan: Plan) -> None:
    """Would catch a digest that covers the run's name, or leaves a term out."""
    own = policy(plan, plans=[plan.terms_digest().hex()])
    own.check(plan.changed(run="another"))
    for changes in (
        {"noise_multiplier": plan.noise_multiplier * 2},
        {"company_clip": plan.company_clip * 1.01},
    ):
        with pytest.raises(PolicyRefusal):
            own.check(plan.changed(**changes))


def test_a_shared_state_that_is_not_listed_is_refused(plan: Plan) -> None:
    own = policy(plan, shared_states=["ab" * 32])
    own.check_shared(bytes.fromhex("ab" * 32))
    with pytest.raises(PolicyRefusal):
        own.check_shared(bytes(32))
    policy(plan).check_shared(bytes(32))


@pytest.mark.parametrize(
    ("hours", "zone", "when", "inside"),
    [
        (("08:00", "18:00"), "UTC", "2024-01-10T08:00+00:00", True),
        (("08:00", "18:00"), "UTC", "2024-01-10T18:00+00:00", False),
        (("20:00", "06:00"), "UTC", "2024-01-10T23:59+00:00", True),
        (("20:00", "06:00"), "UTC", "2024-01-10T05:59+00:00", True),
        (("20:00", "06:00"), "UTC", "2024-01-10T12:00+00:00", False),
        (("08:00", "18:00"), "Europe/Berlin", "2024-07-10T06:30+00:00", True),  # 08:30 there in summer
        (("08:00", "18:00"), "Europe/Berlin", "2024-01-10T06:30+00:00", False),  # 07:30 in winter
    ],
)
def test_hours_are_those_of_the_companys_clock(
    plan: Plan, hours: tuple[str, str], zone: str, when: str, inside: bool
) -> None:
    """Would catch a window that ends at midnight, and one that ignores the zone or summer time."""
    at = datetime.fromisoformat(when).astimezone(ZoneInfo("UTC")).timestamp()
    assert policy(plan, hours=hours, zone=zone).open_at(at) == inside


@pytest.mark.parametrize(
    "rules", [{"hours": ["08:00", "08:00"]}, {"hours": ["8", "9"]}, {"zone": "Europe/Nowhere"}]
)
def test_hours_that_mean_nothing_are_refused(plan: Plan, rules: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"hours|zone"):
        policy(plan, **rules)
