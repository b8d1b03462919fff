"""The frontier: means and intervals against SciPy, the strongest attack, and a page that says what the table says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedblocks.blocks import Metric
from fedblocks.experiments.sweep.frontier import Frontier, points_of
from fedblocks.experiments.sweep.grid import Kind
from fedblocks.experiments.sweep.page import data_of, figure_file, table_of
from fedblocks.experiments.sweep.points import Point
from fedblocks.experiments.sweep.strongest import strongest
from fedblocks.experiments.sweep.table import Row
from fedblocks.threat_model.intervals import Estimate, proportion
from fedblocks.threat_model.report.measures import Measure
from fedblocks.threat_model.results import Result, Statement

QUALITY = {1.0: (0.60, 0.62, 0.67), 8.0: (0.80, 0.81, 0.79), None: (0.90, 0.92, 0.91)}


def attack(value: float, n: int = 40) -> dict[str, Any]:
    [found] = strongest([result("membership", value, n)])
    return found


def result(
    statement: Statement, value: float, n: int = 40, *, protected: bool = True, base: float | None = None
) -> Result:
    own = proportion(round(value * n), n)
    return Result(
        attack=f"{statement}-{value}", adversary="coordinator", view="the opened sum", statistic="<found>",
        statement=statement, unit="auc" if statement == "membership" else "share", outcome="found",
        protected=protected, value=own, baseline=None if base is None else proportion(round(base * n), n),
    )  # fmt: skip


def rows(blocks: tuple[int, ...] = (3,)) -> list[Row]:
    found = []
    for b in blocks:
        for epsilon, qualities in QUALITY.items():
            for seed, quality in enumerate(qualities):
                found.append(
                    Row(
                        cell=f"{b}-{epsilon}-{seed}", kind="run", seed=seed, status="done", epsilon=epsilon,
                        axes={"privacy.epsilon": epsilon, "model.blocks": b}, epsilon_spent=epsilon,
                        quality=quality, quality_public_model=0.5, attacks=[attack(0.5 + quality / 3)],
                        digest=f"{b}-{epsilon}-{seed}",
                    )
                )  # fmt: skip
        for seed in range(3):
            found.append(
                Row(
                    cell="p", kind="pooled", seed=seed, axes={"model.blocks": b}, status="done", quality=0.93,
                    digest=f"{b}-p-{seed}",
                )
            )  # fmt: skip
    return found


def frontier(cells: list[Row]) -> Frontier:
    asked = {"preset": "digits", "name": "<digits>", "over": ["privacy.epsilon=1,8,none"], "seeds": 3, "set": [],
             "audit": True}  # fmt: skip
    measure = Measure(Metric(name="accuracy", higher_is_better=True, unit="share"))
    return Frontier(Path("x"), asked, measure, tuple(points_of(cells)), tuple(cells))


def test_a_point_is_the_mean_over_seeds_with_students_interval() -> None:
    """Would catch settings that are mixed, seeds that are lost, or an interval of the wrong degrees of freedom."""
    points = points_of(rows((1, 3)))
    assert [(p.group["model.blocks"], p.kind, p.epsilon) for p in points] == [
        (b, kind, epsilon) for b in (1, 3)
        for kind, epsilon in (
            ("private", 1.0), ("private", 8.0), ("without noise", None), ("pooled", None), ("public", None)
        )
    ]  # fmt: skip
    for point in points:
        if point.kind not in ("private", "without noise"):
            continue
        own = np.array(QUALITY[point.epsilon])
        low, high = stats.t.interval(0.95, 2, loc=own.mean(), scale=stats.sem(own))
        assert (point.quality.value, point.quality.low, point.quality.high) == pytest.approx(
            (own.mean(), low, high)
        )
        assert point.seeds == (0, 1, 2)


def test_who_is_better_off_than_alone_is_counted_by_company_and_seed_in_the_metrics_own_direction() -> None:
    """Would catch a company that is compared with another, or another seed's; and losses that are taken for gains."""

    def row(kind: Kind, seed: int, **own: float) -> Row:
        axes, epsilon = ({"privacy.epsilon": 1.0}, 1.0) if kind == "run" else ({}, None)
        name = f"{kind}{seed}"
        return Row(
            cell=name, kind=kind, seed=seed, axes=axes, status="done", epsilon=epsilon, quality=0.5, by_company=own,
            digest=name,
        )  # fmt: skip

    cells = [
        row("run", 0, a=0.6, b=0.4), row("run", 1, a=0.8, b=0.5),
        row("alone", 0, a=0.5, b=0.5), row("alone", 1, a=0.9, b=0.5),
    ]  # fmt: skip
    [point] = [p for p in points_of(cells) if p.kind == "private"]
    assert point.better_than_alone == (1, 4)  # a with seed 0; a draw is none
    assert point.by_company == pytest.approx({"a": 0.7, "b": 0.45})
    [lower] = [p for p in points_of(cells, higher_is_better=False) if p.kind == "private"]
    assert lower.better_than_alone == (2, 4)


def test_baselines_stand_beside_runs_that_differ_in_privacy_alone() -> None:
    """Would catch a baseline that is lost, or makes a group of its own in the figure, where an axis is privacy's."""
    cells = [
        replace(row, axes=row.axes | {"privacy.delta": 1e-6}) if row.kind == "run" else row for row in rows()
    ]
    alone = replace(cells[-1], kind="alone", by_company={"a": 0.1}, digest="alone")
    cells = [replace(row, by_company={"a": 0.2}) if row.kind == "run" else row for row in cells]
    found = frontier([*cells, alone])
    assert [p.better_than_alone for p in found.rows if p.kind == "private"] == [(1, 1), (1, 1)]
    assert "●" not in str(found.figure)  # one group needs no key


def test_one_seed_has_no_interval_and_a_failed_one_is_counted() -> None:
    """Would catch an interval out of nothing, or a failure that is silently left out."""
    cells = [row for row in rows() if row.seed == 0]
    lost = Row(
        cell="l", kind="run", seed=1, axes=cells[0].axes, status="failed", reason="x", epsilon=1.0, digest="l"
    )
    [point] = [p for p in points_of([*cells, lost]) if p.epsilon == 1.0]
    assert not np.isfinite(point.quality.low)
    assert (point.failed, len(point.seeds)) == (1, 1)


def test_the_strongest_attack_is_of_a_protected_view_and_no_lucky_case() -> None:
    """Would catch a raw gradient's reconstruction, which no plan protects, or one success in one trial."""
    found = strongest(
        [
            result("reconstruction", 1.0, protected=False), result("reconstruction", 1.0, 1, base=0.0),
            result("reconstruction", 0.4, base=0.0), result("reconstruction", 0.45, base=0.5),
            result("membership", 0.6), result("prediction", 0.99),
        ]
    )  # fmt: skip
    assert [(each["statement"], each["attack"]) for each in found] == [
        ("reconstruction", "reconstruction-0.4"), ("membership", "membership-0.6"),
    ]  # fmt: skip
    assert found[0]["of"] == 3
    # Two cases before the time ran out say nothing beside forty that did not; alone they are all that there is.
    cut = result("reconstruction", 1.0, 2, base=0.1).model_copy(
        update={"outcome": "inconclusive", "reason": "x"}
    )
    whole = result("reconstruction", 0.0, 40, base=0.0).model_copy(update={"outcome": "not found"})
    assert [each["value"] for each in strongest([cut, whole])] == [0.0]
    assert [each["value"] for each in strongest([cut])] == [1.0]
    # A label that is guessed is no example that is rebuilt.
    labels = result("reconstruction", 0.4, 10, base=0.1).model_copy(update={"statistic": "labels read off"})
    assert [each["value"] for each in strongest([labels, whole])] == [0.0]
    assert strongest([]) == []


def test_audits_that_found_nothing_keep_their_upper_limit() -> None:
    """Would catch "0 (0 to 0)" of three audits that tried 40 cases each, as if nothing could be recovered."""
    [nothing] = strongest([result("reconstruction", 0.0, 40, base=0.0)])
    cells = [replace(row, attacks=[nothing]) for row in rows() if row.epsilon == 1.0]
    [point] = [p for p in points_of(cells) if p.kind == "private"]
    found = point.attacks[0].recovered
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 40))  # Clopper and Pearson's of none


def test_the_table_holds_the_figures_of_the_points_and_the_data_too() -> None:
    """Would catch a table whose numbers are not those of the points, an epsilon that is printed below the one spent,
    and an interval of a share beyond all or nothing."""
    wide = [
        replace(row, quality=0.99 - 0.4 * row.seed, epsilon_spent=2.9981) for row in rows() if row.seed < 2
    ]
    found = frontier(wide)
    columns, lines = table_of(found)
    assert columns == ["setting", "epsilon spent", "quality", "seeds", "membership"]
    data = data_of(found)
    for line, point in zip(lines, data.points, strict=True):
        assert line[0] == point.setting
        assert line[2].startswith(f"{point.quality:.1%}")
        if point.kind == "private":
            assert line[1] == "2.999"
            assert "(0.0% to 100.0%)" in line[2]
            own = [each["value"] for row in wide if row.epsilon == point.epsilon for each in row.attacks]
            assert point.attacks[0].value == pytest.approx(np.mean(own))
            assert point.attacks[0].audits == 2


def test_the_figure_shows_every_point_and_is_a_file_by_itself() -> None:
    """Would catch a setting that is missing in the figure, or colours that only the page knows."""
    found = frontier(rows((1, 3)))
    [wide] = re.findall(r'aria-label="([^"]*)"', str(found.figure))[:1]
    for point in found.rows:
        assert found.measure.show(point.quality.value) in wide
    root = ET.fromstring(figure_file(found))
    text = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
    for word in ("no noise", "one pooled data set", "public model", "model.blocks 3", "strongest membership"):
        assert word in text
    assert "var(" not in figure_file(found)


def test_json_of_a_point_has_no_infinite_number() -> None:
    """Would catch JSON that other readers refuse."""
    point = Point(
        group={}, kind="private", epsilon=1.0, epsilon_spent=1.0, seeds=(0,),
        quality=Estimate(value=0.5, low=float("-inf"), high=float("inf"), n=1, method="student"),
    )  # fmt: skip
    assert point.to_json()["quality"]["low"] is None
