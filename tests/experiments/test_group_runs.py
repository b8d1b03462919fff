"""A whole run whose unit of privacy is a group: through protocol, ledger, audit and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelled_texts import json_lines

from fedblocks.blocks.pretrained.small import small_model
from fedblocks.experiments.presets import load_settings
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.threat_model.auditing import AuditDesign, audit_run
from fedblocks.threat_model.report.write import write_both

CLASSES = ("even", "odd")


def labelled(path: Path, authors: int) -> Path:
    """Texts of one word again and again, whose class is whether the word's number is odd."""
    rows = [
        {"text": f"w{2 + (a + i) % 12} " * (3 + i), "label": CLASSES[(a + i) % 2], "author": f"author {a}"}
        for a in range(authors)
        for i in range(1 + a % 4)
    ]
    return json_lines(path, rows)


@pytest.mark.slow
def test_a_pretrained_classifier_is_adapted_group_by_group(tmp_path: Path) -> None:
    """Labelled texts of people, from the file to the report. Catches a place that still counts records: the company's
    own step is tested group by group, the opened sums come out again, and ledger and report name the unit.
    """
    pytest.importorskip("transformers")
    names = json.dumps(CLASSES)
    contract = f'{{kind="labelled-text", labels={names}, group="author"}}'
    settings = load_settings(
        "tabular-cancer",
        [
            'model={family="pretrained-text-classifier"}',
            f'model.pretrained="{small_model("encoder", 2, 2)}"', "model.sequence_length=8",
            "model.objective=denoise",
            f'data.public.source="{labelled(tmp_path / "public.jsonl", 30)}"',
            f'data.private.source="{labelled(tmp_path / "private.jsonl", 120)}"', f"data.contract={contract}",
            "pretraining.steps=2", "companies.count=3", "training.rounds=2", "training.expected_batch_size=8",
            "training.group=author", "training.records_per_group=3", "privacy.epsilon=4",
        ],
    )  # fmt: skip
    run = prepare(settings, tmp_path / "run")
    simulate(run)
    found = audit_run(run, AuditDesign(minutes=0.5))
    by = {name: [r for r in found.results if r.attack == name] for name in ("conformance", "released-sums")}
    for results in by.values():
        assert results
        assert {r.outcome for r in results} <= {"held", "inconclusive"}
    assert any(r.statistic.startswith("sensitivity") and r.outcome == "held" for r in by["conformance"])
    others = [r for r in found.results if r.attack not in by]
    assert {r.outcome for r in others} == {"not applicable"}
    assert all("unit of privacy is one group" in (r.reason or "") for r in others)
    _, report = write_both(run)
    words = "one group (all records with the same value in column 'author')"
    assert report.promise.unit == words
    assert report.promise.adjacency == "add or remove one group"
