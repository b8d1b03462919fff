"""The report as its reader meets it: a real browser opens the file of a real run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page
from support.browsers import browser as browser
from typer.testing import CliRunner

from fedblocks.blocks import Metric, build_model, diagnose, merge
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family
from fedblocks.blocks.families.ar_lm import ARLanguageModelSettings
from fedblocks.blocks.families.dit import DiTSettings
from fedblocks.blocks.families.vit import ViTSettings
from fedblocks.cli.main import app
from fedblocks.client.data.text.tokenizer import Tokenizer
from fedblocks.errors import InputError, RunError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.privacy.events import (
    EpochGaussian,
    Event,
    FixedSizeGaussianSteps,
    GaussianSteps,
    NoNoise,
    SharedSkellamSteps,
    TruncatedGaussianSteps,
)
from fedblocks.privacy.group_privacy import group_epsilon
from fedblocks.privacy.ledger_file import digest, read_ledger
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import DropoutSettings, PrivacySettings, SimulationSettings
from fedblocks.threat_model.audit_file import Audit, Verdict, read_audit_file
from fedblocks.threat_model.exhibits import Condition, Exhibit, Scores, Texts
from fedblocks.threat_model.gate import Gate
from fedblocks.threat_model.intervals import proportion
from fedblocks.threat_model.metrics import psnr
from fedblocks.threat_model.report import write_report
from fedblocks.threat_model.report.answers import _words, answers
from fedblocks.threat_model.report.assemble import accounts_of
from fedblocks.threat_model.report.audit_reason import audit_reason
from fedblocks.threat_model.report.audited import read_audit
from fedblocks.threat_model.report.check import check_report
from fedblocks.threat_model.report.compare import compare
from fedblocks.threat_model.report.diagnosed import read_diagnosed
from fedblocks.threat_model.report.document import Printed, Report
from fedblocks.threat_model.report.facts import read_facts
from fedblocks.threat_model.report.gallery import read_stored
from fedblocks.threat_model.report.judgement import judge_delta, judge_epsilon, number
from fedblocks.threat_model.report.measures import Measure
from fedblocks.threat_model.report.mechanism_words import mechanism_sentences
from fedblocks.threat_model.report.membership import Curve
from fedblocks.threat_model.report.write import render
from fedblocks.threat_model.results import Result
from fedblocks.threat_model.sentences import grouped, sentence

REPOSITORY = Path(__file__).resolve().parents[2]
INJECTED = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
HEADINGS = [
    "What left each company",
    "What is promised",
    "What an attacker could and could not do",
    "The gate",
    "What was not tested",
    "Sign-off",
    "Threat model and adversaries",
    "Mechanisms and account",
    "Privacy against utility",
    "Leakage by block and adversary",
    "Membership: hits against false alarms",
    "Three statements about epsilon",
    "Originals and reconstructions",
    "Utility",
    "Costs",
    "Settings, digests and how to reproduce",
    "The questions of NIST SP 800-226",
]
PATIENCE = 240_000.0  # milliseconds, on a machine that has much else to do


@pytest.fixture(scope="module")
def finished(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run in which companies drop out, its blocks diagnosed."""
    dropout = small.companies.model_copy(update={"dropout": DropoutSettings(rate=0.25, phase="train")})
    settings = small.model_copy(update={"companies": dropout})
    run = prepare(settings, tmp_path_factory.mktemp("report") / "run")
    simulate(run)
    plan, checkpoint = run.plan(), Checkpoint.load(run.checkpoints)
    model = build_model(plan.model, plan.noise)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    heldout = Examples.load(run.evaluation / "heldout.npz")
    found = diagnose(model, heldout.inputs, heldout.targets, torch.Generator().manual_seed(0))
    run.write_json("diagnostics.json", diagnostics([block.to_json() for block in found]))
    return run


def diagnostics(
    blocks: list[dict[str, Any]], end_to_end: float | None = None, shallow: float | None = None
) -> dict[str, Any]:
    """diagnostics.json as a run writes it."""
    return {"round": 4, "heldout": blocks, "control": {"end_to_end": end_to_end, "shallow": shallow}}


def result(outcome: str = "not found", successes: int = 0, **changed: Any) -> Result:
    fields: dict[str, Any] = {
        "attack": "linear-span", "adversary": "coordinator", "view": "opened sum", "statement": "reconstruction",
        "statistic": "exact", "unit": "share", "outcome": outcome, "block": 0,
        "value": proportion(successes, 6), "control": proportion(6, 6), "baseline": proportion(0, 6),
        "reason": "a reason" if outcome in ("refuted", "inconclusive", "not applicable") else "",
    }  # fmt: skip
    return Result.model_validate(fields | changed)


def write_audit(run: RunFolder, *results: Result) -> Audit:
    ordered = tuple(sorted(results, key=lambda each: each.key))
    audit = Audit(
        version="0", run=run.plan().run, plan=run.plan().digest().hex(), round=4, blocks=(0, 1),
        adversaries=("coordinator",), seed=0, minutes=5.0, seconds=1.0, gate=Gate(), results=ordered,
        verdict=Verdict.of(ordered, Gate()),
    )  # fmt: skip
    audit.write(run)
    return audit


@pytest.fixture(scope="module")
def audited(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run with results of every kind: what is tested is the page, not an attack."""
    run = copy_of(finished, tmp_path_factory.mktemp("audited"))
    write_audit(
        run,
        result("found", 6, view="raw gradient", protected=False, adversary="insider"),
        result(block=0, ceiling=0.2, wins_at=0.03),
        result(block=1),
        result(attack="sum-membership", statement="membership", statistic="AUC", unit="auc", control=None),
        result(
            "held", attack="conformance", statement="conformance", statistic="noise variance", unit="number"
        ),
        result("not applicable", attack="token-span", value=None, reason="images have no tokens"),
    )
    draw = np.random.default_rng(0)
    images = Exhibit(
        attack="linear-span", view="opened sum", block=0, what="image",
        arrays={c: draw.uniform(0, 1, (2, 1, 8, 8)).astype(np.float32) for c in ("original", "released", "prior")},
    )  # fmt: skip
    series = Exhibit(
        attack="linear-span", view="opened sum", block=1, what="series",
        arrays={c: draw.normal(0, 1, (3, 1, 24)).astype(np.float32) for c in ("original", "released", "control")},
    )  # fmt: skip
    arrays: dict[str, Any] = {**images.named(), **series.named()}
    np.savez_compressed(run.path / "audit_images.npz", **arrays)
    return run


@pytest.fixture(scope="module")
def finished_page(finished: RunFolder) -> Path:
    """The report of the run as it is, for tests that only read it: its figures take a second to draw."""
    return write_report(finished)


@pytest.fixture(scope="module")
def audited_page(audited: RunFolder) -> Path:
    return write_report(audited)


@dataclass
class Opened:
    """A page, with what it asked of the network and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Of the whole page: folded parts are unfolded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        return self.page.inner_text("body")


def cover(page: Page) -> float:
    """Where the officer's page ends, in pixels."""
    return float(page.evaluate("document.querySelector('.cover').getBoundingClientRect().bottom + scrollY"))


def opened(browser: Browser, report: Path, width: int = 1280, scheme: Any = "light") -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_navigation_timeout(PATIENCE)
    result = Opened(page)
    page.on("request", lambda request: result.requests.append(request.url))
    page.on("console", lambda message: result.complaints.append(message.text))
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.on("dialog", lambda dialog: result.complaints.append("a script opened a dialog"))
    page.goto(report.as_uri())
    return result


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(run.path, folder / "copy")))


def test_the_page_is_whole_and_asks_nothing_of_the_network(
    finished: RunFolder, finished_page: Path, browser: Browser
) -> None:
    report = finished_page
    assert report == finished.path / "report.html"
    seen = opened(browser, report)
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]
    assert seen.complaints == []
    assert seen.page.locator("h2:visible").all_inner_texts() == HEADINGS
    linked = seen.page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.hash)).length"
    )
    assert linked == 0
    assert not re.search(r"<script|(?:src|href)=\"?https?:|url\(\"?http", report.read_text("utf-8"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light")])
def test_it_fits_the_screen_and_speaks_to_screen_readers(
    finished_page: Path, browser: Browser, width: int, scheme: str
) -> None:
    page = opened(browser, finished_page, width, scheme).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate(
        "[...document.querySelectorAll('img, svg')]"
        ".filter(e => !(e.getAttribute('alt') || e.getAttribute('aria-label'))).length"
    )
    assert nameless == 0
    shown = page.locator("svg.chart:visible")
    assert shown.count() == 6
    assert all((shown.nth(i).bounding_box() or {"width": 0})["width"] >= 300 for i in range(6))
    assert page.evaluate(OVERLAPS) == []
    doubled = page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        " return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
    )
    assert doubled == []
    assert page.evaluate(CONTRAST) >= 4.5


# Pairs of texts in one visible drawing that lie on each other, or texts that leave it.
OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll('svg.chart')) {
    if (!chart.checkVisibility()) continue;
    const outer = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll('text')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < outer.left - 1 || a.right > outer.right + 1) found.push(texts[i].textContent + ' leaves');
      boxes.slice(i + 1).forEach((b, k) => {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 1 && y > 4) found.push(texts[i].textContent + ' / ' + texts[i + 1 + k].textContent);
      });
    });
  }
  return found;
})()"""

# The lowest contrast (WCAG 2) of any text to the first painted background behind it.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let lowest = 21;
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.checkVisibility() || e.closest('.chart rect')) continue;
    const style = getComputedStyle(e);
    const ink = rgba(e.tagName === 'text' ? style.fill : style.color);
    let behind = e;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const paper = rgba(behind ? getComputedStyle(behind).backgroundColor : 'white');
    if (e.tagName === 'text' && ['K', 'T', 'U'].includes(e.textContent)) continue;  // on a filled cell
    const [a, b] = [luminance(ink), luminance(paper)].sort((x, y) => y - x);
    lowest = Math.min(lowest, (a + 0.05) / (b + 0.05));
  }
  return lowest;
})()"""


def test_figures_agree_with_the_ledgers_and_the_metrics(
    finished: RunFolder, finished_page: Path, browser: Browser
) -> None:
    """Would catch a number that is not the ledger's or the metrics', read here without the report's code."""
    text = " ".join(opened(browser, finished_page).text().split())
    lines = [json.loads(line) for line in finished.metrics_file.read_text("utf-8").splitlines()]
    last = [line["quality"]["heldout"][-1] for line in lines if "heldout" in line.get("quality", {})]
    interval = re.search(r"([\d,]+) examples, 95% interval ([\d.]+)% to ([\d.]+)%", text)
    assert interval is not None
    n = int(interval[1].replace(",", ""))
    assert n == len(Examples.load(finished.evaluation / "heldout.npz"))
    share, z = last[-1], 1.96
    assert f"accuracy {last[0]:.1%} → {share:.1%} on held-out private data ({n:,} examples)" in text
    # Wilson's limits p are where (p - share)^2 = z^2 p (1 - p) / n.
    limits = sorted(np.roots([1 + z**2 / n, -2 * share - z**2 / n, share**2]))
    assert [float(interval[2]) / 100, float(interval[3]) / 100] == pytest.approx(limits, abs=6e-4)
    assert "of one company (adjacency: add or remove one example" in text
    spent = []
    for home in finished.homes():
        with sqlite3.connect(home / "ledger.sqlite") as ledger:
            spent += ledger.execute("SELECT epsilon_after FROM releases ORDER BY seq DESC LIMIT 1").fetchone()
    promised = re.search(r"What is promised ε = ([\d.]+) at δ = 1e-5 for one image with its class", text)
    assert promised is not None
    assert max(spent) <= float(promised[1]) <= max(spent) * 1.001
    most = max(len(Examples.load(home / "data.npz")) for home in finished.homes())
    assert f"δ = 1e-5 is {1e-5 * most:.2g} of 1/n for the largest company's n = {most:,} examples" in text
    several = re.search(
        r"One person with several: 2 examples, ε = ([\d.]+), 5 examples, ε = ([\d.]+)\.", text
    )
    assert several is not None
    two, five = (float(each) for each in several.groups())
    [row, *_] = read_ledger(finished.homes()[0] / "ledger.sqlite").rows
    whole = row.event.times(row.planned or 1)
    assert [number(two), number(five)] == [number(group_epsilon(whole, k, 1e-5)) for k in (2, 5)]
    assert max(spent) < two < five
    absent = sum(len(line.get("absent", {})) for line in lines)
    aborted = sum(line.get("status", "done") != "done" for line in lines)
    assert absent > 0
    assert f"dropped out {absent} times in 4 rounds; {aborted} round" in text


def test_a_run_without_dp_opens_with_that(
    small: SimulationSettings, tmp_path: Path, browser: Browser
) -> None:
    privacy = PrivacySettings(epsilon=None, i_accept_no_dp=True)
    training = small.training.model_copy(update={"rounds": 1})
    settings = small.model_copy(update={"privacy": privacy, "training": training})
    run = prepare(settings, tmp_path / "run")
    simulate(run)
    before = sorted(run.companies.rglob("*"))
    seen = opened(browser, write_report(run), 390)
    assert seen.text().lstrip().startswith("This run has no differential privacy.")
    box = seen.page.locator(".warning").bounding_box()
    assert box is not None
    assert box["y"] < 100
    assert cover(seen.page) <= 3 * 844
    assert "unbounded" in seen.text()
    assert "Do not approve as it stands: there is no differential privacy" in seen.text()
    # Reading must not make a ledger that says zero.
    assert sorted(run.companies.rglob("*")) == before


def test_names_and_settings_stay_text(finished: RunFolder, tmp_path: Path, browser: Browser) -> None:
    run = copy_of(finished, tmp_path)
    rows = run.metrics()
    rows[1]["absent"] = {INJECTED: ["train.block", INJECTED]}
    rows[2]["status"] = INJECTED
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = (run.path / "settings.toml").read_text("utf-8")
    source = json.dumps(INJECTED)
    (run.path / "settings.toml").write_text(re.sub(r'source = "digits"', f"source = {source}", settings))
    plan = run.read_json("plan.json")
    assert plan is not None
    run.write_json("plan.json", plan | {"run": INJECTED})
    seen = opened(browser, write_report(run))
    assert seen.page.evaluate("document.scripts.length") == 0
    assert seen.page.title() == f"{INJECTED} · privacy and utility report"
    assert seen.page.inner_html("body").count("&lt;script&gt;document.title") >= 4
    assert seen.complaints == []


BINS = [
    {"low": 2.0 - i / 3, "high": 2.0 - (i - 1) / 3, "loss": 1.5 - i / 6, "gradient_norm": 0.4}
    for i in range(6)
]


@dataclass(frozen=True)
class Case:
    """A family, qualities after each block in the public model and at the end, and how the page says it.

    `good` ends with a chain in which every block adds; `bad` forgets, and its last block takes away.
    """

    model: Any
    kept: float
    start: tuple[float, float]
    good: tuple[float, float]
    bad: tuple[float, float]
    forgotten: float
    said_good: str
    said_bad: str
    lost: str
    numbers: tuple[str, ...]

    def run(self, finished: RunFolder, folder: Path, end: tuple[float, float], public: float) -> RunFolder:
        """The finished run told anew as one of this family."""
        run = copy_of(finished, folder)
        rows = [row for row in run.metrics() if "quality" in row]
        rows[0]["quality"] = {"heldout": self.start, "public": (self.start[0], self.kept)}
        for row in rows[1:]:
            row["quality"] = {"heldout": end, "public": (end[0], public)}
        run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        plan = run.plan().model_copy(update={"model": self.model})
        run.write_settings(run.settings().model_copy(update={"model": self.model}), plan)
        return run

    def blocks(self, chain: tuple[float, float]) -> list[dict[str, Any]]:
        told = {"with_z": chain[1], "without_z": chain[0], "inputs_shuffled": None, "follows_wrong_z": 0.25}
        told["by_example"] = self.model.family != "dit"
        return [{"block": b, "level": 1.0, "in_chain": chain[b], "by_noise": BINS} | told for b in range(2)]


_BLOCKS = "#each-block ~ *, .blocks"  # what is said of each block
SIZES: dict[str, Any] = {"hidden_size": 16, "layers": 2, "blocks": 2, "heads": 2}
FAMILIES = pytest.mark.parametrize("case", [
    Case(
        ViTSettings(patch_size=4, **SIZES), 0.6, (0.5, 0.4), (0.6, 0.9), (0.9, 0.2), 0.4,
        "Accuracy on held-out private data rose from 40.0% (public model) to 90.0% after round 4, a change "
        "of +50.0 points (higher is better; ",
        "fell from 40.0% (public model) to 20.0%", "block 1 loses 70.0 points", ("90.0%", "95% interval"),
    ),
    Case(
        ARLanguageModelSettings(**SIZES), 2.75, (3.0, 2.75), (2.75, 2.41), (2.5, 2.8), 3.1,
        "Bits per character on held-out private data fell from 2.75 (public model) to 2.41 after round 4, a "
        "change of −0.34 (lower is better; ",
        "rose from 2.75 (public model) to 2.80", "block 1 loses 0.30 bits", ("2.41", "lower is better"),
    ),
    Case(
        DiTSettings(patch_size=4, **SIZES), 50.0, (60.0, 50.0), (45.0, 39.8), (45.0, 52.0), 70.0,
        "Fréchet distance on held-out private data fell from 50.0 (public model) to 39.8 after round 4, a "
        "change of −10.2 (lower is better; ",
        "rose from 50.0 (public model) to 52.0", "block 1 loses 7.00", ("39.8", "score of single answers"),
    ),
], ids=lambda case: case.model.family)  # fmt: skip


@FAMILIES
def test_a_gain_is_told_in_the_familys_metric_and_direction(
    case: Case, finished: RunFolder, tmp_path: Path, browser: Browser
) -> None:
    """Would catch a metric shown as a share, a loss praised because the figure rose, and needless alarms."""
    run = case.run(finished, tmp_path, case.good, case.good[1])
    run.write_json("diagnostics.json", diagnostics(case.blocks(case.good), case.good[1], case.start[0]))
    seen = opened(browser, write_report(run))
    assert seen.complaints == []
    text = seen.text()
    assert case.said_good in text
    assert all(number in text for number in case.numbers)
    is_share = case.model.family == "vit"
    assert ("95% interval" in text) == is_share
    assert (f"{case.good[1]:.1%}" in text) == is_share
    assert f"the chain does better, with {case.numbers[0]}" in text
    assert f"trained as blocks it reaches {case.numbers[0]}, no worse" in text
    assert "▼" not in " ".join(seen.page.locator(_BLOCKS).all_inner_texts())
    assert set(alarms(seen)) <= {"Dropouts"}


@FAMILIES
def test_a_loss_is_pointed_out_whichever_way_the_metric_runs(
    case: Case, finished: RunFolder, tmp_path: Path, browser: Browser
) -> None:
    """Would catch forgetting, or a block that takes away, sought the wrong way; labels that collide."""
    run = case.run(finished, tmp_path, case.bad, case.forgotten)
    run.write_json("diagnostics.json", diagnostics(case.blocks(case.bad), None, case.bad[0]))
    report = write_report(run)
    seen = opened(browser, report)
    found = alarms(seen)
    assert case.said_bad in found["Utility"]
    assert "forgets public data" in found["Forgetting"]
    # Of the others no interval is known here, as the models in the folder are not of that family.
    is_share = case.model.family == "vit"
    assert ("A block that hurts" in found) == is_share
    if is_share:
        assert case.lost in found["A block that hurts"]
        assert "95% interval of the step" in found["A block that hurts"]
        assert "Stopping after block 0" in found["A block that hurts"]
    assert "does better than the whole chain of 2" in found["First block"]
    assert "One network of 1 layer, as many as a block has, trained end to end reaches" in found["Control"]
    assert "better than the chain" in found["Control"]
    assert ("Takes away: after block 1" in seen.text()) == is_share
    assert ("No interval of a step is known" in seen.text()) != is_share
    assert seen.page.locator(f"{_BLOCKS} >> td.low").count() == 2 * is_share
    for width in (1280, 390):
        page = opened(browser, report, width).page
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERLAPS) == []


@FAMILIES
def test_controls_are_compared_on_the_same_examples(case: Case, finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a chain diagnosed on some held-out examples beside controls measured on all of them."""
    run = case.run(finished, tmp_path, case.good, case.good[1])
    run.write_json("diagnostics.json", diagnostics(case.blocks(case.bad), None, case.start[0]))
    found = read_diagnosed(run, read_facts(run))
    assert found is not None
    assert found.chain == case.good
    assert found.takes_away() == []
    run.write_json("diagnostics.json", diagnostics(case.blocks(case.bad)) | {"round": 3})
    other = read_diagnosed(run, read_facts(run))
    assert other is not None
    assert other.chain == case.bad  # not of the round that was measured last


def alarms(seen: Opened) -> dict[str, str]:
    """The findings that need attention, by topic."""
    topics = seen.page.locator(".findings .attention .topic").all_inner_texts()
    texts = seen.page.locator(".findings .attention p").all_inner_texts()
    return {topic.partition("(needs")[0].strip(): text for topic, text in zip(topics, texts, strict=True)}


@pytest.mark.parametrize(
    ("metric", "value", "step", "shown", "changed", "judged"),
    [
        (family("forecaster").network.metric, 0.0312, -0.0104, "CRPS 0.0312", "−0.0104", "better"),
        (family("forecaster").network.metric, 0.0312, 0.0104, "CRPS 0.0312", "+0.0104", "worse"),
        (
            family("dit").network.metric,
            39.83,
            -12.49,
            "Fréchet distance 39.8",
            "−12.5",
            "better",
        ),
        (Metric("some_new_score", True, "number"), 1240.4, 1.0, "Some new score 1240", "+1.00", "alike"),
        (Metric("some_new_score", True, "number"), 1240.4, -100.0, "Some new score 1240", "−100", "worse"),
        (Metric("accuracy", True, "share"), 0.6, 0.006, "Accuracy 60.0%", "+0.6", "better"),
        (Metric("accuracy", True, "share"), 0.6, -0.004, "Accuracy 60.0%", "−0.4", "alike"),
        (Metric("bits_per_token", False, "bits"), 2.5, 0.02, "Bits per token 2.50", "+0.02", "alike"),
        (Metric("bits_per_token", False, "bits"), 2.5, 0.03, "Bits per token 2.50", "+0.03", "worse"),
    ],
)
def test_every_metric_has_words_digits_and_a_direction(
    metric: Metric, value: float, step: float, shown: str, changed: str, judged: str
) -> None:
    """Would catch exponents, lost digits, a metric without a name, and a change judged the wrong way or too soon."""
    m = Measure(metric)
    assert f"{m.title} {m.show(value)}" == shown
    assert m.change(step) == changed
    assert m.noticeably_better(value, value + step) == (judged == "better")
    assert m.noticeably_worse(value, value + step) == (judged == "worse")


def test_an_unaudited_run_says_how_to_audit_it(
    finished: RunFolder, finished_page: Path, browser: Browser
) -> None:
    text = opened(browser, finished_page).text()
    assert f"fedblocks audit {shlex.quote(str(finished.path))}" in text
    assert "not been audited" in text
    assert "Not to be decided without a person: no audit of this run." in text


# What the browser has decoded of an image, pixel by pixel, as red, green, blue and opacity.
PIXELS = """e => {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [e.naturalWidth, e.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(e, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_originals_and_reconstructions_stand_side_by_side(
    audited: RunFolder, audited_page: Path, browser: Browser, width: int
) -> None:
    seen = opened(browser, audited_page, width)
    assert seen.complaints == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    text = " ".join(seen.text().split())
    audit = read_audit_file(audited)
    assert audit is not None
    assert all(sentence(group.worst) in text for group in grouped(audit.results) if group.worst.value)
    assert "The originals below are private examples" in text
    assert not re.search(r"\b(is|are) safe\b", text)
    # 2 images: original, attack, prior; 3 series: original, attack, control.
    assert seen.page.locator(".pixels").count() == 2 * 3 + 3 * 3
    with np.load(audited.path / "audit_images.npz") as images:
        original = images["linear-span/opened sum/block-0/image/original"]
        rebuilt = images["linear-span/opened sum/block-0/image/released"]
    scores = psnr(rebuilt.astype(np.float64), original.astype(np.float64))
    for i, score in enumerate(scores, start=1):
        label = f"target {i}, rebuilt from the release as it is, {score:.1f} dB"
        assert seen.page.get_by_role("img", name=label).count() == 1
    first = seen.page.get_by_role("img", name="target 1, original").first
    drawn = np.array(first.evaluate(PIXELS)).reshape(8, 8, 4)
    expected = np.rint(255 * np.clip(original[0, 0].astype(np.float64), 0, 1))
    np.testing.assert_array_equal(drawn, np.dstack([expected] * 3 + [np.full((8, 8), 255)]))
    assert first.evaluate("e => e.getBoundingClientRect().width") >= 48
    assert first.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"


def test_a_leak_a_refuted_claim_and_an_open_question_are_pointed_out(
    audited: RunFolder, tmp_path: Path, browser: Browser
) -> None:
    """Would catch a run without a guarantee that is reported as "nothing found", with no mark anywhere."""
    run = copy_of(audited, tmp_path)
    reason = f"0 of 6 in the control {INJECTED}"
    write_audit(
        run,
        result("found", 2, attack="lm-map"),
        result(
            "refuted", 6, attack="certificate", statement="certificate", reason="4.7 is above the claimed 3"
        ),
        result("inconclusive", view="company release", value=None, reason=reason),
        result("found", 6, view="raw gradient", protected=False),
    )
    seen = opened(browser, write_report(run))
    assert seen.complaints == []
    text = seen.text()
    assert "Audit failed: 1 refuted, 1 found, 1 inconclusive" in text
    assert "Do not approve as it stands: the audit failed" in text
    assert "Yes: 2 of 6 (4.33% to 77.7% at 95% confidence)" in text
    assert INJECTED in text
    failed = seen.page.locator("#leakage ~ .results .leaks").all_inner_texts()
    assert not any("0 of 6 in the control" in item for item in failed)
    attention = seen.page.locator("#leakage ~ * .leaks, #statements ~ * .leaks").all_inner_texts() + failed
    assert any("2 of 6" in item and "lm-map" in item for item in attention)
    assert any("4.7 is above the claimed 3" in item for item in attention)
    assert any("0 of 6 in the control" in item for item in attention)
    assert not any("raw gradient" in item for item in attention)
    assert seen.page.locator(".answers .could").count() == 1


@pytest.mark.parametrize("changed", [{"format": 1}, {"views": []}, {"run": None}, {"plan": "1" * 64}])
def test_another_audit_is_refused_by_name(
    audited: RunFolder, audited_page: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Would catch a traceback, and another run's results in this one's report (`test_audit_file` bends the rest)."""
    run = copy_of(audited, tmp_path)
    assert (run.path / audited_page.name).is_file()
    run.write_json("audit.json", (run.read_json("audit.json") or {}) | changed)
    with pytest.raises(RunError, match=r"audit\.json is of (another version|a run of another plan)"):
        write_report(run)


def test_damaged_pictures_are_refused_by_name(audited: RunFolder, tmp_path: Path) -> None:
    run = copy_of(audited, tmp_path)
    path = run.path / "audit_images.npz"
    whole = path.read_bytes()
    with np.load(path) as file:
        images = dict(file)
    name = "linear-span/opened sum/block-0/image/released"
    bent = []
    for other in (
        images | {name: images[name][:1]},
        images | {name: images[name].astype(int)},
        images | {"strange": images[name]},
        {key: array for key, array in images.items() if not key.endswith("original")},
    ):
        np.savez(path, **other)
        bent.append(path.read_bytes())
    for damaged in (b"", whole[:100], whole[:-30], whole[:60] + bytes(40) + whole[100:], *bent):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"audit_images\.npz: damaged"):
            write_report(run)
    path.write_bytes(whole)
    write_report(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10**5, "{}\udcff"])
@pytest.mark.parametrize("name", ["audit.json", "result.json", "diagnostics.json", "plan.json"])
def test_a_file_of_a_run_that_is_no_json_object_is_refused_by_name(
    finished: RunFolder, tmp_path: Path, name: str, text: str
) -> None:
    run = copy_of(finished, tmp_path)
    (run.path / name).write_text(text, "utf-8", "surrogateescape")
    with pytest.raises((RunError, InputError), match=r"\.json|plan|settings"):
        write_report(run)


@pytest.mark.parametrize(
    "bad",
    ["{}", "[]", "3", '{"round": 2}', '{"round": -1}', '{"round": "2"}', "\udcff", "[" * 10**5]
    + [
        json.dumps({"round": 2, "status": "done", "survivors": [], "absent": {}} | changed)
        for changed in ({"survivors": [1]}, {"absent": {"a": "x"}}, {"quality": {"heldout": ["x"]}})
    ],
)
def test_metrics_that_no_run_appends_are_refused_by_line(
    finished: RunFolder, tmp_path: Path, bad: str
) -> None:
    """Would catch rounds that are left out of a report, or dropped by a resume, because a line before is damaged."""
    run = copy_of(finished, tmp_path)
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    lines[2] = bad.encode("utf-8", "surrogateescape") + b"\n"
    run.metrics_file.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=r"metrics\.jsonl line 3"):
        write_report(run)
    with pytest.raises(RunError, match=r"metrics\.jsonl line 3"):
        run.forget_metrics_after(4)
    assert run.metrics_file.read_bytes() == b"".join(lines)


def test_the_same_run_gives_the_same_page(audited: RunFolder, audited_page: Path) -> None:
    first = audited_page.read_bytes()
    assert write_report(audited).read_bytes() == first


def test_a_run_that_has_only_been_prepared_has_a_report(small: SimulationSettings, tmp_path: Path) -> None:
    run = prepare(small, tmp_path / "run")
    text = write_report(run).read_text("utf-8")
    assert "0 of 4 rounds have run so far" in text
    assert "the run is not finished" in text
    assert "No round has been evaluated yet" in text


# --- The officer's page --------------------------------------------------------------------------------------


def test_the_first_page_is_one_screen_at_a_desk_and_three_on_a_phone(
    audited_page: Path, finished_page: Path, browser: Browser
) -> None:
    """Would catch a first page that grows past what an officer reads at a glance."""
    for report in (audited_page, finished_page):
        assert cover(opened(browser, report, 1280).page) <= 900
        assert cover(opened(browser, report, 390).page) <= 3 * 844


def test_sections_are_found_by_their_findings_and_open_where_they_are_wanted(
    audited: RunFolder, audited_page: Path, browser: Browser
) -> None:
    """Would catch a page that must be scrolled for its answers, a section without a finding, and one that neither a
    link nor a keyboard opens; scripts are not needed for any of it."""
    written = render(audited, drawn=False).report
    seen = opened(browser, audited_page)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollHeight") <= 6000
    found = page.locator("details.part > summary .finding").all_inner_texts()
    assert [" ".join(text.split()) for text in found] == [
        ("▲ Needs attention: " if s.attention else "") + s.finding for s in written.sections
    ]
    is_open = "id => document.getElementById(id).closest('details.part').open"
    shut = [s.anchor for s in written.sections if not s.attention]
    assert {"costs", "questions"} <= set(shut)
    assert [page.evaluate(is_open, anchor) for anchor in shut] == [False] * len(shut)
    page.goto(page.url + "#costs")
    assert page.evaluate(is_open, "costs")
    assert not page.evaluate(is_open, "questions")
    page.locator("summary:has(#title-questions)").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(is_open, "questions")
    figures = page.locator("#utility ~ .beside figure").all()
    assert len(figures) == 2  # side by side at a desk
    page.goto(page.url.partition("#")[0] + "#utility")
    left, right = (each.bounding_box() or {"y": -1.0, "x": -1.0} for each in figures)
    assert left["x"] + 400 < right["x"]
    assert seen.complaints == []


def test_of_many_pictures_a_strip_is_shown_and_the_others_are_folded_away(
    audited: RunFolder, tmp_path: Path, browser: Browser
) -> None:
    """Would catch a wall of pictures, and a picture that is lost between strip and fold."""
    run = copy_of(audited, tmp_path)
    draw = np.random.default_rng(0)
    shown = Exhibit(
        attack="linear-span", view="opened sum", block=0, what="image",
        arrays={c: draw.uniform(0, 1, (9, 1, 8, 8)).astype(np.float32) for c in ("original", "released")},
    )  # fmt: skip
    stored: dict[str, Any] = {**shown.named()}
    np.savez_compressed(run.path / "audit_images.npz", **stored)
    page = opened(browser, write_report(run)).page
    page.goto(page.url + "#reconstructions")
    assert page.locator(".pixels:visible").count() == 2 * 6
    page.get_by_text("Show all 9").click()
    assert page.locator(".pixels:visible").count() == 2 * 9


def test_every_figure_has_a_text_and_a_table(audited_page: Path, browser: Browser) -> None:
    """Would catch a figure whose content nobody can read who cannot see it, and a table cut off without a cue."""
    page = opened(browser, audited_page, 390).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    lacking = page.evaluate("""[...document.querySelectorAll('figure')].filter(f => {
      const after = [...f.closest('section').querySelectorAll('table')].filter(
        t => f.compareDocumentPosition(t) & Node.DOCUMENT_POSITION_FOLLOWING);
      return !after.length || !f.querySelector('figcaption') || !f.querySelector('svg[aria-label]');
    }).map(f => f.textContent)""")
    assert page.locator("figure").count() >= 5
    assert lacking == []
    cut = page.evaluate("""[...document.querySelectorAll('table')].filter(t => {
      const box = t.closest('.scroll');
      return !box || (t.offsetWidth > box.clientWidth && !(getComputedStyle(box).overflowX === 'auto'
        && getComputedStyle(box).backgroundImage.includes('gradient') && box.tabIndex === 0));
    }).length""")
    assert cut == 0


@pytest.mark.parametrize(
    ("epsilon", "good", "words"),
    [
        (0.5, True, "ε = 0.5 is strong"),
        (2.0, True, "ε = 2 is fair"),
        (8.0, True, "could become 99.97% sure"),
        (15.0, None, "Somebody must say why"),
        (485.0, False, "no protection worth the name"),
        (None, False, "There is no promise"),
    ],
)
def test_an_epsilon_is_judged_in_plain_words(epsilon: float | None, good: bool | None, words: str) -> None:
    """Would catch a run at epsilon 485 that is shown like any other."""
    found = judge_epsilon(epsilon)
    assert found.good is good
    assert words in found.text
    assert found.caution == (epsilon == 8.0)
    # A tick stands beside the topic: nothing weak may be said there as if it were good.
    if found.good:
        assert "within this gate's limit of 10" in found.topic
    assert ("weak" in found.topic) == (found.caution or epsilon == 15.0)


@pytest.mark.parametrize(
    ("results", "good", "caution", "topic"),
    [
        ([result()], True, False, "the audit passed: nothing was found"),
        (
            [
                result(),
                result("found", 4, statement="membership", statistic="AUC", unit="auc", baseline=None),
            ],
            True,
            True,
            "the audit passed, since its gate allows what it found (members told from others)",
        ),
        ([result("found", 3)], False, False, "the audit failed (examples were rebuilt or read off)"),
        (
            [result("refuted", 6, attack="certificate", statement="certificate"), result("found", 2)],
            False,
            False,
            "the audit failed (examples were rebuilt or read off, the claimed ε is refuted)",
        ),
        (
            [result("inconclusive", value=None)],
            None,
            False,
            "the audit left questions open (1 attack without an answer)",
        ),
    ],
)
def test_the_gate_says_what_an_audit_found_and_why_that_passes_or_fails(
    audited: RunFolder, tmp_path: Path, results: list[Result], good: bool | None, caution: bool, topic: str
) -> None:
    """Would catch a tick beside an audit that told members from others, and a failure that does not say of what."""
    run = copy_of(audited, tmp_path)
    write_audit(run, *results)
    audit = read_audit(run)
    assert audit is not None
    reason = audit_reason(audit)
    assert (reason.good, reason.caution, reason.topic) == (good, caution, topic)


def test_whoever_rebuilds_an_example_knows_that_it_was_used(audited: RunFolder, tmp_path: Path) -> None:
    """Would catch "not known" beside examples that were rebuilt, since the test of membership had no time."""
    run = copy_of(audited, tmp_path)
    asked = {"attack": "sum-membership", "statement": "membership", "statistic": "AUC", "unit": "auc"}
    write_audit(run, result("found", 6), result("inconclusive", value=None, **asked))
    [member] = [a for a in answers(read_audit(run)) if a.question == "Tell whether an example was used?"]
    assert member.could is True
    assert member.answer.startswith("Yes, by rebuilding it")
    write_audit(run, result("not found", 0), result("inconclusive", value=None, **asked))
    [member] = [a for a in answers(read_audit(run)) if a.question == "Tell whether an example was used?"]
    assert member.could is None


@pytest.mark.parametrize(
    ("delta", "examples", "good", "words"),
    [
        (1e-5, 800, True, "0.008 of 1/n"),
        (5e-4, 800, None, "below a tenth is usual"),
        (0.2, 800, False, "published 160 of 800 examples outright"),
        (0.2, None, False, "far too large for any data set"),
        (1e-5, None, None, "well below 1/n"),
    ],
)
def test_a_delta_is_judged_against_the_number_of_examples(
    delta: float, examples: int | None, good: bool | None, words: str
) -> None:
    """Would catch a delta of a fifth that passes because its epsilon is small."""
    found = judge_delta(delta, examples)
    assert found.good is good
    assert words in found.text


@pytest.mark.parametrize(
    ("event", "said", "not_said"),
    [
        (GaussianSteps(sampling_rate=0.1, noise_multiplier=1.2, steps=1), "probability 0.1", "pass over"),
        (EpochGaussian(noise_multiplier=1.2, epochs=1), "exactly one batch of a pass", "Poisson"),
        (
            TruncatedGaussianSteps(
                sampling_rate=0.1, noise_multiplier=1.2, steps=1, examples=100, batch_cap=20
            ),
            "batch above 20",
            "pass over",
        ),
        (
            FixedSizeGaussianSteps(examples=100, batch_size=10, noise_multiplier=1.2, steps=1),
            "10 of 100 examples",
            "Poisson",
        ),
        (
            SharedSkellamSteps(
                sampling_rate=0.1, steps=1, l2=10.0, l1=50.0, variance=1e4, beta=1e-9, shares=3, colluders=1
            ),
            "on 3 of these shares, and on none of 1 further company",
            "Gaussian",
        ),
        (NoNoise(steps=1), "without any noise", "clip"),
    ],
)
def test_a_mechanism_is_told_from_the_ledgers_event(event: Event, said: str, not_said: str) -> None:
    """Would catch a sentence that says Poisson of batches that were dealt out by epochs."""
    (text,) = mechanism_sentences([event] * 7)
    assert text.startswith("7 ")
    assert said in text
    assert not_said not in text


def test_a_hundred_companies_that_are_alike_share_a_row(finished: RunFolder) -> None:
    """Would catch 100 identical rows, and a company that differs hidden among them."""
    [first, *_] = read_facts(finished).spending
    many = [replace(first, company=f"company-{i}") for i in range(100)]
    other = replace(first, company="other", ceiling=first.ceiling + 1)
    [together, apart] = accounts_of([*many, other])
    assert together.companies == tuple(s.company for s in many)
    assert apart.companies == ("other",)
    assert together.agrees is True
    assert together.second_low is not None
    assert together.second_low <= first.spent


def test_a_ledger_that_a_second_accountant_denies_fails_the_gate(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch an account that is only shown, and not recomputed."""
    run = copy_of(finished, tmp_path)
    assert render(run, drawn=False).report.verdict.ending != "failed"
    home = run.homes()[0]
    with sqlite3.connect(home / "ledger.sqlite") as ledger:
        for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        head, *rows = [list(row) for row in ledger.execute("SELECT * FROM releases ORDER BY seq")]
        names = [each[1] for each in ledger.execute("PRAGMA table_info(releases)")]
        previous = read_ledger(home / "ledger.sqlite").header.genesis
        for row in (head, *rows):
            values = dict(zip(names, row, strict=True))
            values["epsilon_after"] = values["epsilon_after"] / 2
            if values["seq"] > 1:
                values["epsilon_before"] = values["epsilon_before"] / 2
            previous = digest(previous, [values[name] for name in names if name != "hash"])
            ledger.execute(
                "UPDATE releases SET epsilon_after = ?, epsilon_before = ?, hash = ? WHERE seq = ?",
                (values["epsilon_after"], values["epsilon_before"], previous, values["seq"]),
            )
    found = render(run, drawn=False).report
    assert found.verdict.ending == "failed"
    assert [a.agrees for a in found.accounts if home.name in a.companies] == [False]


# --- Is it what the files say? -------------------------------------------------------------------------------


def test_one_changed_number_in_the_metrics_is_noticed(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a check that looks at the page alone: any number of metrics.jsonl that is changed fails it."""
    run = copy_of(finished, tmp_path)
    write_report(run)
    assert check_report(run).ok
    whole = run.metrics_file.read_text("utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    draw = random.Random(0)
    for row in draw.sample(range(len(rows)), 2):
        changed = json.loads(json.dumps(rows))
        quality = changed[row]["quality"]["heldout"]
        quality[draw.randrange(len(quality))] += 1e-6
        run.metrics_file.write_text("".join(json.dumps(each) + "\n" for each in changed), "utf-8")
        assert not check_report(run).ok
    run.metrics_file.write_text(whole, "utf-8")
    assert check_report(run).ok


def test_a_number_that_is_changed_in_the_page_is_named(audited: RunFolder, tmp_path: Path) -> None:
    """Would catch a page that was made to look better after it was written."""
    run = copy_of(audited, tmp_path)
    path = write_report(run)
    page = path.read_text("utf-8")
    epsilon = number(render(run, drawn=False).report.promise.epsilon or 0.0)
    path.write_text(page.replace(f"<b>ε = {epsilon}</b>", "<b>ε = 0.1</b>"), "utf-8")
    found = check_report(run)
    assert len(found.differences) == 1
    assert "the page says “ε = 0.1" in found.differences[0]
    assert f"its files give “ε = {epsilon}" in found.differences[0]


def test_files_of_a_run_that_contradict_each_other_fail_the_gate(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a new page of changed metrics: written after the change, it must not look like a sound one."""
    run = copy_of(finished, tmp_path)
    rows = run.metrics()
    rows[-1]["quality"]["heldout"][-1] += 0.01
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    write_report(run)
    found = check_report(run)
    assert found.differences
    assert all("accuracy after the last round" in each for each in found.differences)
    assert render(run, drawn=False).report.verdict.ending == "failed"


def test_the_page_and_the_data_have_the_same_numbers(
    audited: RunFolder, audited_page: Path, browser: Browser
) -> None:
    """Would catch a number of the page that the published form has otherwise."""
    written = render(audited, drawn=False)
    data = json.loads(written.report.model_dump_json())
    assert Report.model_validate(data) == written.report
    text = opened(browser, audited_page).text()
    audit = audited.read_json("audit.json")
    assert audit is not None
    assert data["audit"] == audit["verdict"]["ending"]
    for answer in data["attackers"]:
        assert answer["answer"] in text
        assert any(r["value"] and r["value"]["high"] == answer["high"] for r in audit["results"])
    assert all(d["sha256"] in text for d in data["digests"])
    metrics = hashlib.sha256(audited.metrics_file.read_bytes()).hexdigest()
    assert {"of": "metrics.jsonl", "sha256": metrics} in data["digests"]


def test_two_runs_are_compared_by_figure_and_setting(
    audited: RunFolder, finished: RunFolder, tmp_path: Path
) -> None:
    """Would catch rows of two runs that are not of the same thing."""
    other = copy_of(finished, tmp_path)
    settings = (other.path / "settings.toml").read_text("utf-8")
    (other.path / "settings.toml").write_text(settings.replace("seed = 0", "seed = 7"), "utf-8")
    rows = {
        row.what: row
        for row in compare(render(audited, drawn=False).report, render(other, drawn=False).report)
    }
    assert rows["seed"].one == "0"
    assert rows["seed"].other == "7"
    assert not rows["ε"].differs
    assert (rows["audit"].one, rows["audit"].other) == ("passed", "none")
    assert rows["Rebuild an example exactly?"].other == "not asked"
    assert "model.layers" not in rows


# --- Membership curves ---------------------------------------------------------------------------------------


def test_hits_at_few_false_alarms_are_counted_among_enough_others() -> None:
    """Would catch a hit rate at 0.1% that 200 others are said to show, and a threshold that more of them pass."""
    draw = np.random.default_rng(0)
    members, others = draw.normal(1, 1, 200), draw.normal(0, 1, 200)
    few = Curve("a", "v", 0, members, others, None)
    assert [h.hits for h in few.roc().at] == [None, None]
    many = Curve("a", "v", 0, members, others, draw.normal(0, 1, 10_000))
    for at in many.roc().at:
        assert at.hits is not None
        threshold = np.quantile(many.nulls, 1 - at.rate, method="higher")
        assert at.hits == pytest.approx(float((members > threshold).mean()), abs=0.011)
    alarms, hits = many.points
    assert (np.diff(alarms) >= 0).all()
    assert (np.diff(hits) >= 0).all()
    assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0.0, 0.0, 1.0, 1.0)


def test_stored_scores_are_drawn_as_curves(audited: RunFolder, tmp_path: Path, browser: Browser) -> None:
    """Would catch curves without a table, labels that collide on logarithmic axes, and damaged scores."""
    run = copy_of(audited, tmp_path)
    draw = np.random.default_rng(0)
    scores = [
        Scores(
            attack=name, view="one company's release, all other examples known", block=block,
            members=draw.normal(shift, 1, 100), others=draw.normal(0, 1, 100), simulated=nulls,
        )
        for name, shift, block, nulls in (
            ("sum-membership", 1.0, 0, draw.normal(0, 1, 40_000)),
            ("sum-membership", 0.2, 1, draw.normal(0, 1, 40_000)),
            ("model-membership", 0.1, 0, None),
        )
    ]  # fmt: skip
    path = run.path / "audit_images.npz"
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    for each in scores:
        arrays |= each.named()
    np.savez_compressed(path, **arrays)
    report = write_report(run)
    for width in (1280, 390):
        seen = opened(browser, report, width)
        seen.text()
        assert seen.page.evaluate(OVERLAPS) == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.locator("#membership ~ .beside .scroll tbody tr").count() == 2  # the best block of each
    assert seen.page.locator("#membership ~ details tbody tr").count() == 3
    assert "too few" in seen.text()
    assert "10,000" in seen.text()
    arrays["sum-membership/x/block-0/scores/members"] = np.full(3, np.nan, np.float32)
    np.savez_compressed(path, **arrays)
    with pytest.raises(RunError, match=r"audit_images\.npz: damaged"):
        write_report(run)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_core_finds_no_serious_fault(
    audited_page: Path, browser: Browser, width: int, scheme: str
) -> None:
    """Would catch what makes the page hard to read with a screen reader, a keyboard or weak eyes."""
    axe = importlib.util.find_spec("axe_playwright_python")
    if axe is None or axe.origin is None:
        if os.environ.get("CI"):
            pytest.fail("axe-playwright-python is missing, and CI must judge the report")
        pytest.skip("axe-playwright-python is not installed")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)  # type: ignore[arg-type]
    page.goto(audited_page.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.add_script_tag(path=Path(axe.origin).parent / "axe.min.js")
    found = page.evaluate("axe.run(document)")
    assert found["passes"]
    serious = [
        (v["id"], v["nodes"][0]["html"][:200])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


# Tables, of those that are no galleries, of which a phone shows only a part; every result of an audit scrolls.
CUT = """[...document.querySelectorAll('.scroll')].filter(e => !e.querySelector('.gallery, .scores') &&
  e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"""


def test_a_phone_sees_every_column_and_questions_lead_to_their_sections(
    audited: RunFolder, audited_page: Path, browser: Browser
) -> None:
    """Would catch columns that are cut, cells without the head of their column, a link of the questions that lands
    nowhere or in what is folded, and questions out of their order."""
    seen = opened(browser, audited_page, 390)
    page = seen.page
    links = page.locator("#questions ~ .scroll a")
    targets = [links.nth(i).get_attribute("href") or "" for i in range(links.count())]
    assert len(targets) == len(render(audited, drawn=False).report.questions) == 17
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    for target in dict.fromkeys(targets):
        page.evaluate("window.scrollTo(0, 0)")
        page.goto(page.url.partition("#")[0] + target)
        top, visible = page.evaluate(
            "id => (e => [e.getBoundingClientRect().top, e.checkVisibility()])(document.getElementById(id))",
            target[1:],
        )
        assert visible
        assert -5 <= top < 900, target
    seen.text()  # with all details open
    assert page.evaluate(CUT) == []
    bare = (
        "[...document.querySelectorAll('table:not(.gallery) tbody td')].filter(e => !e.dataset.label).length"
    )
    assert page.evaluate(bare) == 0


def test_what_is_folded_on_a_screen_is_printed(audited_page: Path, browser: Browser) -> None:
    """Would catch a printed page without its tables."""
    page = opened(browser, audited_page).page
    folded = "document.querySelectorAll('main details table')"
    hidden = f"[...{folded}].filter(e => !e.checkVisibility()).length"
    assert page.evaluate(hidden) > 0
    page.emulate_media(media="print")
    assert page.evaluate(hidden) == 0


@pytest.mark.parametrize(
    ("value", "n", "outcome", "begins"),
    [
        (0.82, 34, "not found", "Not established: right 82 times in 100"),
        (0.52, 34, "not found", "No better than a coin: right 53 times in 100"),
        (0.82, 34, "found", "Partly: right 82 times in 100"),
    ],
)
def test_no_answer_contradicts_its_own_interval(value: float, n: int, outcome: str, begins: str) -> None:
    """Would catch "no better than a coin" beside an interval that lies above a coin's."""
    found = result(
        outcome, statement="property", unit="auc", statistic="told (AUC)", baseline=None,
        value=proportion(round(value * n), n),
    )  # fmt: skip
    assert _words(found, outcome == "found").startswith(begins)


def test_the_page_is_small(audited_page: Path) -> None:
    assert audited_page.stat().st_size < 5_000_000


def test_the_command_writes_checks_and_refuses(audited: RunFolder, tmp_path: Path) -> None:
    """Would catch a check whose exit code says that all is well, and data that are not of the published form."""
    run = copy_of(audited, tmp_path)
    found = CliRunner().invoke(app, ["report", str(run.path), "--json"])
    assert found.exit_code == 0
    printed = Printed.model_validate_json(found.stdout)
    assert Path(printed.report) == run.path / "report.html"
    assert CliRunner().invoke(app, ["report", str(run.path), "--check"]).exit_code == 0
    page = (run.path / "report.html").read_text("utf-8")
    (run.path / "report.html").write_text(page.replace("Sign-off", "Signed"), "utf-8")
    found = CliRunner().invoke(app, ["report", str(run.path), "--check", "--json"])
    assert found.exit_code == 3
    assert json.loads(found.stdout)["ok"] is False
    (run.path / "report.html").unlink()
    assert isinstance(CliRunner().invoke(app, ["report", str(run.path), "--check"]).exception, RunError)
    both = ["report", str(run.path), "--compare", str(run.path), str(run.path)]
    assert isinstance(CliRunner().invoke(app, both).exception, InputError)


def test_texts_stand_beside_what_was_read_of_them(finished: RunFolder, tmp_path: Path) -> None:
    """Would catch a text that is shown as numbers, or with a token that was not read off."""
    run = copy_of(finished, tmp_path)
    model = ARLanguageModelSettings(**SIZES)
    run.write_settings(
        run.settings().model_copy(update={"model": model}), run.plan().model_copy(update={"model": model})
    )
    original = Tokenizer.of("tokenizer", "ascii").encode("<b>key = 7</b>").astype(np.int32)[None]
    read = np.where(np.arange(original.shape[1]) % 2, original, -1)
    arrays: dict[Condition, Any] = {
        "original": original,
        "released": np.full_like(original, -1),
        "control": read,
    }
    shown = Texts(attack="token-span", view="a release", block=0, arrays=arrays)
    stored: dict[str, Any] = {**shown.named()}
    np.savez_compressed(run.path / "audit_images.npz", **stored)
    [gallery] = read_stored(run).galleries
    texts = {row.label: str(row.pictures[0].drawing) for row in gallery.rows}
    assert texts["Original"] == '<span class="read">&lt;b&gt;key = 7&lt;/b&gt;</span>'
    assert texts["Values read off without noise (control)"].startswith('<span class="read">·b·k·y')
    assert set(texts["Values read off from the release as it is"][19:-7]) == {"·"}
