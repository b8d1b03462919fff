"""A company's home whose data name groups: imported, checked, accounted and refused by the group."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.labelled_texts import json_lines

from fedblocks.client.company import Company
from fedblocks.client.doctor.findings import Findings
from fedblocks.client.doctor.plan import check_plan
from fedblocks.client.home import make_home
from fedblocks.client.importing import import_data
from fedblocks.client.policy import load_policy
from fedblocks.client.readiness import own_terms, ready
from fedblocks.client.units import units
from fedblocks.errors import InputError, LedgerError, PolicyRefusal, ProtocolError
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan, read_inputs
from fedblocks.privacy.events import UNIT
from fedblocks.privacy.ledger import Ledger
from fedblocks.privacy.ledger_file import read_ledger
from fedblocks.server.own_account import guarantee_sentence
from fedblocks.settings import DataSource, Plan, SimulationSettings
from fedblocks.settings.contract import TextContract

TINY = (
    "model.sequence_length=4", "model.hidden_size=16", "model.heads=2", "model.layers=2", "model.blocks=2",
    "privacy.epsilon=1.0", "training.rounds=2", "companies.count=3",
)  # fmt: skip
BY_AUTHOR = ("training.group=author", "training.records_per_group=2")


def settings_of(*overrides: str) -> SimulationSettings:
    return load_settings("ar-text", [*TINY, *overrides])


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """By their unit: "record", "author", "house"."""
    by = {"record": (), "author": BY_AUTHOR, "house": ("training.group=house",)}
    every = {name: settings_of(*overrides) for name, overrides in by.items()}
    return {name: make_plan(each, fresh_model(each), "run") for name, each in every.items()}


def texts(path: Path, sizes: dict[str, int]) -> Path:
    """So many documents of each author, of one window each."""
    rows = [{"text": f"w{i % 9}x", "author": name} for name, size in sizes.items() for i in range(size)]
    return json_lines(path, rows)


def home_of(
    folder: Path, sizes: dict[str, int], held_out: float = 0.0, group: str | None = "author"
) -> Company:
    home = folder / "acme"
    make_home(home, "acme", epsilon_ceiling=8.0, delta=1e-5)
    contract = TextContract(group=group, least_examples=1)
    source = DataSource(source=str(texts(folder / "texts.jsonl", sizes)), contract=contract)
    import_data(home, source, settings_of().model, False, held_out=held_out)
    company = Company(home, load_policy(home / "policy.toml"))
    company.create_ledger()
    return company


MANY = {f"person {i}": 1 + i % 4 for i in range(40)} | {"Person 3 ": 2}


def test_an_import_holds_out_whole_groups(tmp_path: Path) -> None:
    """Near-duplicates of one name among them."""
    company = home_of(tmp_path, MANY, held_out=0.3)
    data, out = company.data(), company.held_out()
    assert out is not None
    assert data.groups is not None
    assert out.groups is not None
    assert len(data.groups) + len(out.groups) == 40
    assert not set(map(bytes, data.groups.keys.numpy())) & set(map(bytes, out.groups.keys.numpy()))
    assert len(data) + len(out) == sum(MANY.values())


def test_a_check_warns_of_persons_where_the_unit_is_a_record(tmp_path: Path, plans: dict[str, Plan]) -> None:
    """And of nothing where it is theirs; another column, or none, is an error."""
    company = home_of(tmp_path, {"Anna": 30, "Ben": 1})

    def found(plan: Plan) -> dict[str, str]:
        findings = Findings()
        check_plan(company, plan, company.data(), None, None, findings)
        return {each.level: str(each) for each in findings.found if each.name == "groups"}

    warned = found(plans["record"])
    assert list(warned) == ["warning"]
    assert "2 groups of up to 30 records" in warned["warning"]
    assert "training.group = 'author'" in warned["warning"]
    assert found(plans["author"]) == {}
    assert "column 'house'" in found(plans["house"])["error"]


def test_a_plan_of_other_groups_is_refused_before_anything_is_charged(
    tmp_path: Path, plans: dict[str, Plan]
) -> None:
    company = home_of(tmp_path, MANY)
    with pytest.raises(ProtocolError, match="group = 'house'") as refused:
        ready(company, plans["house"], joining=True)
    assert refused.value.code == "no_data"
    assert read_ledger(company.home / "ledger.sqlite").rows == ()
    assert len(ready(company, plans["author"], joining=True)) == sum(MANY.values())


def test_a_policy_may_ask_for_its_groups(tmp_path: Path, plans: dict[str, Plan]) -> None:
    company = home_of(tmp_path, MANY)
    policy = company.policy.model_copy(update={"group": "author"})
    policy.check(plans["author"])
    for other in ("record", "house"):
        with pytest.raises(PolicyRefusal, match="asks for groups by column 'author'") as refused:
            policy.check(plans[other])
        assert refused.value.rule == "group"


def charged(company: Company, plan: Plan) -> float:
    with company.ledger() as ledger:
        terms = own_terms(company, plan)
        return ledger.charge(run=plan.run, round=1, block="b0", release_id="r1", terms=terms).epsilon_after


def test_a_group_of_one_record_costs_what_one_of_ten_thousand_does(
    tmp_path: Path, plans: dict[str, Plan]
) -> None:
    """In the ledger of each; catches an account that counts records."""
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = home_of(tmp_path / "one", {"Anna": 1, "Ben": 1})
    many = home_of(tmp_path / "many", {"Anna": 10_000, "Ben": 1})
    plan = plans["author"]
    assert units(plan, one.data()) == units(plan, many.data()) == 2
    assert charged(one, plan) == charged(many, plan) > 0


def test_a_ledger_names_its_unit_and_refuses_another(tmp_path: Path, plans: dict[str, Plan]) -> None:
    """Epsilons of a record and of a group do not add up: catches a ledger that adds them all the same."""
    company = home_of(tmp_path, MANY)
    charged(company, plans["author"])
    copy = read_ledger(company.home / "ledger.sqlite")
    assert "with the same value in column 'author'" in str(copy.spent)
    with company.ledger() as ledger:
        ledger.verify()
        for other in ("record", "house"):
            plan = plans[other].changed(run="another")
            terms = own_terms(company, plan)
            with pytest.raises(LedgerError, match="do not add up"):
                ledger.check_plan(plan.run, terms)
            with pytest.raises(LedgerError, match="do not add up"):
                ledger.charge(run=plan.run, round=1, block="b0", release_id="r2", terms=terms)
        assert len(ledger.rows()) == 1
    assert copy.spent.unit != UNIT
    (tmp_path / "other.sqlite").unlink(missing_ok=True)
    with Ledger.open(tmp_path / "other.sqlite", "acme", epsilon_ceiling=8.0, delta=1e-5) as fresh:
        assert fresh.spent().unit == UNIT


def test_a_run_of_one_name_is_pinned_to_its_unit(tmp_path: Path, plans: dict[str, Plan]) -> None:
    company = home_of(tmp_path, MANY)
    charged(company, plans["author"])
    with company.ledger() as ledger, pytest.raises(LedgerError, match="pinned to"):
        ledger.check_plan("run", own_terms(company, plans["record"]))


def test_the_unit_is_said_in_the_plan_and_in_every_sentence_on_it(plans: dict[str, Plan]) -> None:
    words = "one group (all records with the same value in column 'author')"
    assert plans["author"].unit_words == words
    assert words in guarantee_sentence(plans["author"], 3, simulated=False)
    assert "group" not in plans["record"].model_dump_json()
    assert "of one example" not in guarantee_sentence(plans["author"], 3, simulated=False)
    assert plans["author"].digest() != plans["record"].digest()


def test_a_simulation_deals_and_holds_out_whole_groups(tmp_path: Path) -> None:
    """Catches a person at two companies, or on both sides of a company's split."""
    source = texts(tmp_path / "texts.jsonl", {f"p{i}": 1 + i % 5 for i in range(60)})
    private = (f'data.private.source="{source}"', 'data.private.contract={kind="text", group="author"}')
    inputs = read_inputs(settings_of(*private, *BY_AUTHOR))
    seen: list[bytes] = []
    for name, own in inputs.companies.items():
        held = inputs.own_heldout[name]
        assert own.groups is not None
        assert held.groups is not None
        groups = [
            set(map(bytes, each.groups.keys.numpy())) for each in (own, held) if each.groups is not None
        ]
        assert groups[1]
        assert not groups[0] & groups[1]
        seen += [*groups[0], *groups[1]]
    assert len(seen) == len(set(seen)) == 60
    noted = read_inputs(settings_of(*private)).findings["private"].notes
    assert any("unit of privacy is one record" in note for note in noted)
    with pytest.raises(InputError, match="name groups by column 'author'"):
        read_inputs(settings_of(*private, "training.group=house"))
    with pytest.raises(InputError, match="name no groups"):
        read_inputs(settings_of(f'data.private.source="{source}"', *BY_AUTHOR))


def test_records_of_a_group_need_a_group() -> None:
    with pytest.raises(InputError, match=r"training\.records_per_group"):
        settings_of("training.records_per_group=2")
