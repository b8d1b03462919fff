"""The audit of pretrained models: what an example consists of, where tokens show, and what says that it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pretrained_runs import FAMILIES, pretrained_run

from fedblocks.blocks import BlockObjective, build_model
from fedblocks.blocks.families import family
from fedblocks.blocks.taps import ValueTap
from fedblocks.client.policy import load_policy
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.randomness import Randomness
from fedblocks.settings import NoiseSettings
from fedblocks.threat_model.adversaries import ADVERSARIES
from fedblocks.threat_model.attacks import conformance, lm_map, token_span
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.block_problem import BlockProblem, example_fields
from fedblocks.threat_model.clock import Clock
from fedblocks.threat_model.epsilon import checks
from fedblocks.threat_model.epsilon.recording import OwnStep, record
from fedblocks.threat_model.jobs import jobs_of
from fedblocks.threat_model.report.write import render
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.subject import Subject
from fedblocks.threat_model.tokens.span import Span


def settings_of(kind: str, **changes: Any) -> Any:
    small = family(FAMILIES[kind]).small_settings(layers=2, blocks=2)
    return type(small).model_validate(small.model_dump() | changes)


def test_a_labelled_text_is_tokens_and_a_label() -> None:
    """Would catch a text that is taken for an image, or for its own target."""
    fields = {f.name: (f.what, f.side, f.shape, f.classes) for f in example_fields(settings_of("encoder"))}
    assert fields == {"tokens": ("tokens", "inputs", (5,), 24), "label": ("label", "targets", (), 3)}


@pytest.mark.parametrize(("kind", "objective"), [
    ("encoder", "task"), ("encoder", "denoise"), ("decoder", "task"), ("decoder", "mixed"),
])  # fmt: skip
def test_what_the_first_layer_reads_of_a_token_lies_in_its_gradient(kind: str, objective: str) -> None:
    """Would catch a tap of another weight, without the norm or the place, and one of padding."""
    settings = settings_of(kind, objective=objective, trains="block")
    model = build_model(settings, NoiseSettings())
    problem = BlockProblem(model, 0, BlockObjective(), settings)
    (tap,) = problem.taps
    assert isinstance(tap, ValueTap)
    text = torch.tensor([7, 3, 7, 11, 0 if kind == "encoder" else 5])
    values = {"tokens": text[None]} | ({"label": torch.tensor([1])} if kind == "encoder" else {})
    values = problem.sample(values, torch.Generator().manual_seed(0))
    tensors = problem.tensors(problem.gradient(values)[0])
    span = Span.of(tensors[tap.weight][tap.rows], 0.0)
    assert span.rank < span.width
    entered = tap.enter(torch.arange(24), torch.arange(5))  # (V, T, D)
    leverage = span.leverage(entered)
    inside = leverage[text[:4], torch.arange(4)]
    outside = leverage[[v for v in range(1, 24) if v not in text.tolist()]]
    assert float(inside.max()) < float(outside.min()) - 4
    if kind == "encoder":
        assert float(leverage[0, 4]) > float(inside.max()) + 4


def test_nothing_shows_where_low_rank_additions_or_biases_train() -> None:
    for kind in ("encoder", "decoder", "vision"):
        for trains in ("lora", "bias"):
            model = build_model(settings_of(kind, trains=trains), NoiseSettings())
            assert model.taps(0) == ()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("pretrained")
    noise = {"noise_multiplier": 3.0}
    run = prepare(pretrained_run("encoder", folder, trains="block", privacy=noise), folder / "run")
    simulate(run)
    return Subject.of(run, seed=1)


def test_raw_gradients_of_whole_blocks_give_tokens_away_and_noise_hides_them(done: Subject) -> None:
    """Would catch an audit that finds nothing in a pretrained block because it does not look."""
    first = replace(done, blocks=(0,), clock=Clock(20))
    assert token_span.ATTACK.applies(first) is None
    assert "through a table" in str(token_span.ATTACK.applies(replace(done, blocks=(1,))))
    found = [r for r in token_span.ATTACK.run(first) if isinstance(r, Result)]
    by = {(r.adversary, r.statistic): r for r in found}
    raw = by["insider", "token values found"]
    assert raw.outcome == "found"
    assert raw.value is not None
    assert raw.value.value > 0.95
    summed = by["coordinator", "token values found"]
    assert summed.value is not None
    assert summed.value.value < raw.value.value - 0.2
    assert "only the values" in by["insider", "texts in order"].reason


@pytest.mark.parametrize("kind", ["encoder", "vision", "decoder"])
def test_what_cannot_be_mounted_says_why(kind: str, tmp_path: Path) -> None:
    """Would catch an attack that starts on a field that it cannot search, and one that is refused without a word."""
    run = prepare(pretrained_run(kind, tmp_path), tmp_path / "run")
    subject = Subject.of(run)
    jobs, refused = jobs_of(subject, list(ADVERSARIES.values()))
    named = {each.attack: each.reason for each in refused}
    spans = ["linear-span", "unmixed-span", "noised-target", "token-span", "crafted-weights"]
    searches = ["lm-map", "gradient-matching", "posterior-prediction"]
    assert set(spans) <= set(named)
    assert (set(searches) <= set(named)) == (kind != "vision")
    assert {job.attack for job in jobs} >= {"conformance", "epsilon-certificate", "sum-membership"}
    assert all(reason for reason in named.values())


def test_candidates_are_made_where_nothing_is_noised(tmp_path: Path) -> None:
    """An image's label is searched for in such a run too: would catch draws counted by the noise's values."""
    subject = Subject.of(prepare(pretrained_run("vision", tmp_path), tmp_path / "run"))
    found = list(lm_map.ATTACK.run(replace(subject, blocks=(0,), clock=Clock(1e-9))))
    assert {r.outcome for r in found if isinstance(r, Result)} == {"inconclusive"}


def test_noise_that_blocks_of_unequal_sizes_share_is_found() -> None:
    """Would catch an audit that ends at the first sum of another size, and one that compares no two sizes."""
    draw = np.random.default_rng(0)
    series = [draw.normal(size=n) for n in (5000, 4000, 5000)]
    assert checks.correlation(series, 1e-3, "x").held
    assert not checks.correlation([*series, series[0][:4500]], 1e-3, "x").held


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(0,), None], ids=["one", "all"])
def test_a_whole_audit_of_blocks_of_unequal_sizes_ends_in_a_report(
    blocks: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """With shares of noise, all attacks: would catch one that takes every block to be as large as the first."""
    training = {} if blocks is None else {"blocks": blocks}
    privacy = {"mode": "secure_step", "epsilon": 8.0, "delta": 1e-3}
    run = prepare(pretrained_run("vision", tmp_path, privacy=privacy, training=training), tmp_path / "run")
    simulate(run)
    audit = audit_run(run, AuditDesign(minutes=0.2, workers=1))
    assert {r.block for r in audit.results} - {None} == set(blocks or (0, 1))
    assert "refuted" not in {r.outcome for r in audit.results}
    held = {r.attack for r in audit.results if r.outcome == "held"}
    assert {"released-sums", "conformance"} <= held
    report = render(run, drawn=False).report
    assert all(check.agrees for check in report.checks)


def test_an_objective_without_noise_is_not_refuted_for_noise_that_it_does_not_draw(done: Subject) -> None:
    """Would catch a check that counts constants as draws: 24 bits each that nobody drew."""
    assert conformance.ATTACK.applies(replace(done, blocks=(0,))) is None
    own = OwnStep(
        model=done.model, block=0, data=done.private["company-0"], plan=done.plan, companies=3,
        policy=load_policy(done.run.companies / "company-0" / "policy.toml"),
    )  # fmt: skip
    found = record(own, Randomness.from_seed(0, "t"), probe=False)
    assert found.steps
    assert (found.values, found.bits) == (0, 0.0)
