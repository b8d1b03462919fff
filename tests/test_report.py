"""The report as its reader meets it: a real browser opens the file of a real run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from fedblocks.blocks import BlockObjective, build_model, merge
from fedblocks.client.data import LabelledImages
from fedblocks.config import DropoutSettings, PrivacySettings, Settings
from fedblocks.experiments.preparation import prepare
from fedblocks.experiments.simulation import simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.threat_model.audit import AuditSettings, audit_block
from fedblocks.threat_model.lm_map import Budget
from fedblocks.threat_model.metrics import psnr
from fedblocks.threat_model.report import write_report

INJECTED = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
HEADINGS = (
    "Findings",
    "Utility",
    "Privacy spent",
    "Who dropped out when",
    "Audit: what an attack recovers",
    "What this report does not tell",
    "How to reproduce",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing, and CI must open the report")
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def finished(small: Settings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run in which companies drop out."""
    dropout = small.companies.model_copy(update={"dropout": DropoutSettings(rate=0.25, phase="train")})
    settings = small.model_copy(update={"companies": dropout})
    run = prepare(settings, tmp_path_factory.mktemp("report") / "run")
    simulate(run)
    return run


@pytest.fixture(scope="module")
def audited(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run, attacked with next to no budget: what is tested is the page, not the attack."""
    run = copy_of(finished, tmp_path_factory.mktemp("audited"))
    plan, checkpoint = run.plan(), Checkpoint.load(run.checkpoints)
    model = build_model(plan.model, plan.noise)
    merge(model, checkpoint.model.shared, *checkpoint.model.blocks)
    parts = [LabelledImages.load(home / "data.npz") for home in run.companies.iterdir()]
    data = max(parts, key=len)
    budget = Budget(attempts=1, draw_iterations=1, iterations=1)
    result = audit_block(
        model,
        0,
        private=(data.images, data.labels),
        public=LabelledImages.load(run.path / "public_train.npz").images,
        objective=BlockObjective(weight=plan.noise.weight),
        draws=1,
        max_grad_norm=plan.max_grad_norm,
        noise_multiplier=plan.noise_multiplier,
        settings=AuditSettings(targets=2, aggregates=1, cohort=3, unknown=3, candidates=5, budget=budget),
    )
    np.savez_compressed(run.path / "audit_images.npz", **result.images)  # type: ignore[arg-type]
    run.write_json("audit.json", {"run": plan.run, "round": checkpoint.round} | result.to_json())
    return run


@dataclass
class Opened:
    """A page, with what it asked of the network and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self) -> str:
        return self.page.inner_text("body")


def opened(browser: Browser, report: Path, width: int = 1280, scheme: Any = "light") -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    result = Opened(page)
    page.on("request", lambda request: result.requests.append(request.url))
    page.on("console", lambda message: result.complaints.append(message.text))
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.on("dialog", lambda dialog: result.complaints.append("a script opened a dialog"))
    page.goto(report.as_uri())
    return result


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(run.path, folder / "copy")))


def test_the_page_is_whole_and_asks_nothing_of_the_network(finished: RunFolder, browser: Browser) -> None:
    report = write_report(finished)
    assert report == finished.path / "report.html"
    seen = opened(browser, report)
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]
    assert seen.complaints == []
    for heading in HEADINGS:
        found = seen.page.get_by_role("heading", name=heading)
        assert found.count() == 1, heading
        assert found.is_visible(), heading
    assert not re.search(r"<script|(?:src|href)=\"?https?:|url\(\"?http", report.read_text("utf-8"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light")])
def test_it_fits_the_screen_and_speaks_to_screen_readers(
    finished: RunFolder, browser: Browser, width: int, scheme: str
) -> None:
    page = opened(browser, write_report(finished), width, scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate(
        "[...document.querySelectorAll('img, svg')]"
        ".filter(e => !(e.getAttribute('alt') || e.getAttribute('aria-label'))).length"
    )
    assert nameless == 0
    shown = page.locator("svg.chart:visible")
    assert shown.count() == 4
    assert all((shown.nth(i).bounding_box() or {"width": 0})["width"] >= 300 for i in range(4))
    doubled = page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        " return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
    )
    assert doubled == []
    assert page.evaluate(CONTRAST) >= 4.5


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


def test_figures_agree_with_the_ledgers_and_the_metrics(finished: RunFolder, browser: Browser) -> None:
    text = opened(browser, write_report(finished)).text()
    result = finished.read_json("result.json")
    assert result is not None
    assert f"{result['accuracy']:.1%}" in text
    assert "one example of one company (adjacency: add or remove one example" in " ".join(text.split())
    shown = [float(found) for found in re.findall(r"ε\s=\s([\d.]+)", text)]
    largest = max(result["epsilon"].values())
    assert shown
    assert all(largest <= value <= largest * 1.001 for value in shown)
    absent = sum(len(row.get("absent", {})) for row in finished.metrics())
    aborted = sum(row.get("status", "done") != "done" for row in finished.metrics())
    assert absent > 0
    assert f"Absences\n{absent}\n{aborted} of 4 rounds aborted" in text


def test_a_run_without_dp_opens_with_that(small: Settings, tmp_path: Path, browser: Browser) -> None:
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
    assert "unbounded" in seen.text()
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
    assert seen.text().count("<script>document.title") >= 4
    assert seen.complaints == []


def test_an_unaudited_run_says_how_to_audit_it(finished: RunFolder, browser: Browser) -> None:
    text = opened(browser, write_report(finished)).text()
    assert f"fedblocks audit {finished.path}" in text
    assert "not been audited" in text


@pytest.mark.parametrize("width", [1280, 390])
def test_originals_and_reconstructions_stand_side_by_side(
    audited: RunFolder, browser: Browser, width: int
) -> None:
    seen = opened(browser, write_report(audited), width)
    assert seen.complaints == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    text = seen.text()
    audit = audited.read_json("audit.json")
    assert audit is not None
    assert all(view["verdict"] in text for view in audit["views"])
    assert "The originals below are private examples" in text
    assert not re.search(r"\b(is|are) safe\b", text)
    # 2 targets: original, attack, prior; then with a control; then 3 targets with a control.
    assert seen.page.locator(".pixels").count() == 2 * 3 + 2 * 4 + 3 * 4
    with np.load(audited.path / "audit_images.npz") as images:
        original, rebuilt = images["opened_sum.original"], images["opened_sum.released"]
    scores = psnr(rebuilt.astype(np.float64), original.astype(np.float64))
    for i, score in enumerate(scores, start=1):
        label = f"target {i}, rebuilt from the release as it is, {score:.1f} dB"
        assert seen.page.get_by_role("img", name=label).count() >= 1
    first = seen.page.get_by_role("img", name="target 1, original").last
    grey = round(255 * float(original[0, 0, 0, 0]))
    drawn = first.evaluate("e => e.querySelector('path').getAttribute('fill')")
    assert drawn == f"#{grey:02x}{grey:02x}{grey:02x}"
    assert first.evaluate("e => e.getBoundingClientRect().width") >= 48


def test_a_leak_and_a_failed_control_are_pointed_out(
    audited: RunFolder, tmp_path: Path, browser: Browser
) -> None:
    run = copy_of(audited, tmp_path)
    audit = run.read_json("audit.json")
    assert audit is not None
    leak, failed = audit["views"][1], audit["views"][2]
    leak |= {"outcome": "recovered", "recovered": True, "verdict": "Recovered 2 of 2 exactly"}
    leak |= {"control_recovered": True, "title": INJECTED}
    failed |= {"outcome": "inconclusive", "recovered": False, "control_recovered": False}
    run.write_json("audit.json", audit)
    seen = opened(browser, write_report(run))
    assert seen.complaints == []
    text = seen.text()
    assert "Audit\n1 of 2\nprotected views gave something away; 1 inconclusive" in text
    assert INJECTED in text
    attention = seen.page.locator(".findings .attention").all_inner_texts()
    assert any("Recovered 2 of 2 exactly" in item for item in attention)
    assert any("The control failed in view" in item and "(c)" in item for item in attention)


def test_the_same_run_gives_the_same_page(audited: RunFolder) -> None:
    first = write_report(audited).read_bytes()
    assert write_report(audited).read_bytes() == first


def test_a_run_that_has_only_been_prepared_has_a_report(small: Settings, tmp_path: Path) -> None:
    run = prepare(small, tmp_path / "run")
    text = write_report(run).read_text("utf-8")
    assert "0 of 4 rounds have run so far" in text
    assert "No round has been evaluated yet" in text
