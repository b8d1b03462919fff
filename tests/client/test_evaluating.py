"""A company's part in an evaluation: what an example adds is its own affair, and what leaves was charged before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from support.coordinating import NODES, Coordinator
from support.deployed import without_seeds
from support.families import Variant

from fedblocks.blocks import digest
from fedblocks.blocks.build import network_of
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family
from fedblocks.client import app as client_app
from fedblocks.client.approvals import Request
from fedblocks.client.company import Company
from fedblocks.client.decision_chain import whole_lines
from fedblocks.client.evaluating import contribution_of, summed
from fedblocks.client.policy import load_policy
from fedblocks.client.readiness import planned_parts, planned_terms
from fedblocks.client.terms_in_words import described, projected
from fedblocks.errors import InputError
from fedblocks.experiments.simulation.preparation import fresh_model, make_plan, prepare
from fedblocks.privacy.ledger import Ledger
from fedblocks.protocol.evaluation import BITS, CLIP, evaluation_label, evaluation_run, length
from fedblocks.protocol.messages import (
    EVALUATE,
    JOIN,
    KEYS,
    TRAIN,
    EvaluateRequest,
    JoinRequest,
    KeysReply,
    KeysRequest,
    TrainRequest,
    refused,
)
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import Plan, SimulationSettings, validated


def judging(small: SimulationSettings, **told: Any) -> SimulationSettings:
    raw = small.model_dump()
    raw["evaluation"] = {"noise_multiplier": 20.0, "every": 1, **told}
    return validated(SimulationSettings, raw)


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(judging(small), tmp_path_factory.mktemp("made") / "run")
    without_seeds(run)
    return run


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(prepared.path, tmp_path / "run")))


class Judge(Coordinator):
    """Trains round one, and then asks for evaluations."""

    def evaluation(self, attempt: str = "", **changes: Any) -> Any:
        model = digest(*self.model.blocks)
        told = {
            "label": evaluation_label(attempt),
            "model_digest": model,
            "length": length(self.plan),
            "bits": BITS,
        }
        return self.session(**(told | changes))

    def asked(self, session: Any) -> dict[int, RecordDict]:
        record = KeysRequest(session, self.joined).to_record()
        return {n: self.ask(n, KEYS, record) for n in NODES}

    def orders(self, session: Any) -> dict[int, RecordDict]:
        adverts = {
            f"company-{n - 1}": KeysReply.from_record(r).advert for n, r in self.asked(session).items()
        }
        requests = EvaluateRequest.for_each(dict(enumerate(self.model.blocks)), adverts)
        return {n: requests[f"company-{n - 1}"].to_record() for n in NODES}

    def begin(self, *, train: bool = True) -> None:
        self.joined = self.channels()
        if train:
            session = self.session()
            record = KeysRequest(session, self.joined).to_record()
            adverts = {
                f"company-{n - 1}": KeysReply.from_record(self.ask(n, KEYS, record)).advert for n in NODES
            }

            orders = TrainRequest.for_each(0, {0: self.model.blocks[0]}, adverts)
            for n in NODES:
                assert refused(self.ask(n, TRAIN, orders[f"company-{n - 1}"].to_record())) is None

    def rows(self) -> list[tuple[str, str]]:
        with company_of(self.run).ledger() as ledger:
            return [(row.run, row.block) for row in ledger.rows()]


def company_of(run: RunFolder) -> Company:
    home = run.companies / "company-0"
    return Company(home, load_policy(home / "policy.toml"))


@pytest.fixture(scope="module")
def trained(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """All have trained in round one."""
    made = Judge(RunFolder(Path(shutil.copytree(prepared.path, tmp_path_factory.mktemp("trained") / "run"))))
    made.begin()
    return made


@pytest.fixture
def judge(trained: Judge, tmp_path: Path) -> Judge:
    """The same companies, with another life before them."""
    made = Judge(RunFolder(Path(shutil.copytree(trained.run.path, tmp_path / "run"))))
    made.joined = trained.joined
    return made


def plan_of(variant: Variant, small: SimulationSettings, **told: Any) -> Plan:
    """A plan for a family's model, with an evaluation."""
    network = network_of(variant.settings)
    raw = make_plan(small, fresh_model(small), "run").model_dump()
    raw["model"], raw["noise"] = variant.settings.model_dump(), {}
    largest = None if network.metric.unit == "share" else 4.0
    return validated(Plan, raw | {"evaluation": {"noise_multiplier": 20.0, "largest": largest, **told}})


def test_one_example_less_moves_the_sum_by_its_own_contribution_and_nothing_else(
    variant: Variant, small: SimulationSettings
) -> None:
    """The oracle of add/remove adjacency, for every family: would catch scores that depend on their neighbours
    (shared noise, batches of other sizes, a metric of the whole set), and a contribution beyond the clip."""
    if not network_of(variant.settings).metric_of_one:
        pytest.skip("its metric is one of sets")
    plan, net = plan_of(variant, small), variant.model().eval()
    data = Examples(*variant.examples(6))
    whole = summed(net, data, plan)
    assert whole[-1] == 6
    for out in (0, 3, 5):
        rest = data[torch.tensor([i for i in range(6) if i != out])]
        own = contribution_of(net, data[slice(out, out + 1)], plan)
        assert np.array_equal(whole - own, summed(net, rest, plan))
        assert 0 < np.linalg.norm(own) <= CLIP
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert np.array_equal(summed(net, data[order], plan), whole)


def test_every_example_is_judged_at_the_same_place_in_memory(
    variant: Variant, small: SimulationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch rows judged where they lie in the set: with MKL_CBWR other than STRICT a product with a row that
    begins elsewhere has other bits, so one example more would move the scores of all after it."""
    if not network_of(variant.settings).metric_of_one:
        pytest.skip("its metric is one of sets")
    plan, net, begins = plan_of(variant, small), variant.model().eval(), set()
    quality = net.chain_quality

    def watched(inputs: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> list[float]:
        begins.add((inputs.data_ptr() % 64, targets.data_ptr() % 64))
        return quality(inputs, targets, generator)

    monkeypatch.setattr(net, "chain_quality", watched)
    summed(net, Examples(*variant.examples(9)), plan)
    assert begins == {(0, 0)}


def test_a_run_that_is_called_as_another_ones_evaluations_is_no_plan(run: RunFolder) -> None:
    """Would catch two runs in one entry of a ledger: one's training would be pinned to the other's terms, and a
    ledger that was accepted anew would end the wrong one, whose cohort could then be another."""
    plan = run.plan()
    with pytest.raises(InputError, match="run"):
        plan.changed(run=evaluation_run(plan.run))
    names = {name for each in (plan, plan.changed(run="run2")) for name, _ in planned_parts(each)}
    assert len(names) == 4


def test_a_family_whose_metric_is_one_of_sets_is_refused(small: SimulationSettings) -> None:
    """A Frechet distance of one image says nothing, and one of all depends on all."""
    with pytest.raises(InputError, match="no mean over single examples"):
        plan_of(Variant(family("dit").small_settings()), small)


def test_scores_are_those_of_the_familys_own_metric(small: SimulationSettings) -> None:
    """Against `chain_quality` over the whole set: would catch a score of another block, or of training data."""
    plan, net = make_plan(judging(small), fresh_model(small), "run"), fresh_model(small).eval()
    generator = torch.Generator().manual_seed(0)
    data = Examples(
        torch.randn(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    )
    score, count = summed(net, data, plan)
    assert count == 64
    spread = [
        net.chain_quality(data.inputs, data.targets, torch.Generator().manual_seed(s))[-1] for s in range(8)
    ]
    assert min(spread) - 0.1 <= score / count <= max(spread) + 0.1


def test_an_evaluation_is_charged_and_on_record_before_it_leaves(judge: Judge) -> None:
    """Would catch a release that the ledger does not know, and one that is not told apart from a training."""
    orders = judge.orders(judge.evaluation())
    assert judge.rows() == [("run", "block-0")]
    assert refused(judge.ask(1, EVALUATE, orders[1])) is None
    assert judge.rows() == [("run", "block-0"), (evaluation_run("run"), "evaluation")]
    told = [json.loads(line) for line in whole_lines(company_of(judge.run).home / "decisions.jsonl")]
    assert [line["what"] for line in told][-3:] == ["charged", "evaluated", "sent"]
    assert told[-1]["message"] == EVALUATE


def test_the_charge_comes_first(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while the examples are judged: would catch noise that is drawn, and sums that are made, uncharged."""
    orders = judge.orders(judge.evaluation())

    def crash(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(client_app, "evaluated", crash)
    assert refused(judge.ask(1, EVALUATE, orders[1])) is not None
    assert judge.rows()[-1] == (evaluation_run("run"), "evaluation")


def test_an_attempt_that_failed_is_made_anew_with_the_same_bits_and_without_a_charge(judge: Judge) -> None:
    """As a training's: would catch a coordinator that averages the noise away by beginning anew."""
    seen = []
    for token in "abc":
        orders = judge.orders(judge.evaluation(token * 16))
        assert refused(judge.ask(1, EVALUATE, orders[1])) is None
        (path,) = company_of(judge.run).home.glob("release-*-evaluation.bin")
        seen.append(path.read_bytes().partition(b"\n")[2])
    assert len(set(seen)) == 1
    assert len(judge.rows()) == 2


def test_the_same_session_is_not_answered_twice(judge: Judge) -> None:
    orders = judge.orders(judge.evaluation())
    before = judge.state(1)
    assert refused(judge.ask(1, EVALUATE, orders[1])) is None
    judge.put_back(1, before)
    assert refused(judge.ask(1, EVALUATE, orders[1])) == "replay"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 5}, "bad_session"),
        ({"length": 3}, "bad_session"),
        ({"bits": 22}, "bad_session"),
        ({"threshold": 3}, "low_threshold"),
        ({"label": "evaluation-1"}, "bad_session"),
        ({"cohort": tuple(f"company-{i}" for i in range(4))}, "bad_session"),
    ],
)
def test_an_evaluation_that_the_plan_does_not_have_is_refused_before_anybody_is_charged(
    judge: Judge, changes: dict[str, Any], code: str
) -> None:
    """Would catch evaluations in any round, of any length, or among fewer companies than trained together."""
    replies = judge.asked(judge.evaluation(**changes))
    assert refused(replies[1]) in (code, "low_threshold")
    assert len(judge.rows()) == 1


def test_another_model_than_the_sessions_is_refused(judge: Judge) -> None:
    """Would catch a model that is sent to one company alone, to learn of its examples."""
    orders = judge.orders(judge.evaluation(model_digest=bytes(32)))
    assert refused(judge.ask(1, EVALUATE, orders[1])) == "wrong_session"
    session = judge.evaluation()
    adverts = {f"company-{n - 1}": KeysReply.from_record(r).advert for n, r in judge.asked(session).items()}
    fewer = EvaluateRequest.for_each({0: judge.model.blocks[0]}, adverts)["company-0"]
    assert refused(judge.ask(1, EVALUATE, fewer.to_record())) == "wrong_session"
    assert len(judge.rows()) == 1


def test_a_company_that_has_not_trained_does_not_judge(run: RunFolder) -> None:
    """Would catch evaluations before training, at whose share of delta training was not planned."""
    judge = Judge(run)
    judge.begin(train=False)
    assert refused(judge.asked(judge.evaluation())[1]) == "not_trained"


def test_a_run_that_fits_without_its_evaluations_only_is_refused_at_the_join(
    run: RunFolder, small: SimulationSettings
) -> None:
    """The whole run's epsilon: would catch evaluations that are found not to fit once training is paid for."""
    company, plan = company_of(run), run.plan()
    with company.ledger() as ledger:
        training, both = (
            ledger.check_plan(plan.run, planned_terms(plan)),
            ledger.check_plans(planned_parts(plan)),
        )
    assert training < both
    rules = company.home / "policy.toml"
    text = "\n".join(
        line for line in rules.read_text().splitlines() if not line.startswith("epsilon_ceiling")
    )
    rules.write_text(f"epsilon_ceiling = {(training + both) / 2}\n{text}")
    judge = Judge(run)
    join = JoinRequest(judge.plan, judge.model.shared).to_record()
    assert refused(judge.ask(1, JOIN, join)) == "privacy"
    lighter = JoinRequest(judge.plan.changed(evaluation=None), judge.model.shared).to_record()
    assert refused(judge.ask(1, JOIN, lighter)) is None
    rules.write_text(f"epsilon_ceiling = 8.0\nepsilon_ceiling_run = {(training + both) / 2}\n{text}")
    assert refused(judge.ask(2, JOIN, join)) is None
    assert refused(judge.ask(1, JOIN, join)) == "privacy"


def test_people_are_told_of_evaluations_and_of_their_cost(run: RunFolder) -> None:
    """`agent pending`: would catch an epsilon that leaves them out, and a sentence that says no count leaves."""
    company, plan = company_of(run), run.plan()
    with company.ledger() as ledger:
        both = ledger.check_plans(planned_parts(plan))
    found = projected(company, plan)
    assert found["epsilon_after"] == pytest.approx(both)
    assert found["evaluations"] == 4
    terms = plan.terms_digest().hex()
    request = Request(run=plan.run, digest=terms, terms=terms, plan=plan.model_dump_json(), asked=0.0)
    said = "\n".join(described(company, request))
    assert "judges     the model 4 times" in said


@pytest.mark.parametrize("rule", ["runs", "renyi"])
def test_the_ledgers_forecast_is_what_charging_comes_to(run: RunFolder, tmp_path: Path, rule: str) -> None:
    """Would catch a forecast that accounts evaluations as another run than they become."""
    plan = run.plan()
    with Ledger.open(tmp_path / "ledger", "acme", epsilon_ceiling=9.0, delta=1e-5, rule=rule) as ledger:
        forecast = ledger.check_plans(planned_parts(plan))
        assert forecast > ledger.check_plan(*planned_parts(plan)[0])
        number = 0
        for name, terms in planned_parts(plan):
            for _ in range(terms.releases):
                number += 1
                ledger.charge(run=name, round=1, block="b", release_id=str(number), terms=terms)
                assert ledger.check_plans(planned_parts(plan)) == pytest.approx(forecast, rel=1e-6)
        assert ledger.spent().epsilon == pytest.approx(forecast, rel=1e-6)
