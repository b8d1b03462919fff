"""A simulation whose companies have parts of their own: trained at its end, in no round, and judged by company."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from support.pretrained_runs import pretrained_run

from fedblocks.blocks.examples import Examples
from fedblocks.client.personal import PERSONAL_FILE, lay_over_file
from fedblocks.client.quality import quality_of
from fedblocks.experiments.loaded_run import Run
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.models import differences, export, format_of, saved_models


def test_each_company_is_judged_with_its_own_parts_and_they_are_in_no_model(tmp_path: Path) -> None:
    """Would catch one company's parts over another's examples, parts in a checkpoint or an export, and a list or
    difference of rounds that asks for tensors which are in no state."""
    plain = pretrained_run("encoder", tmp_path)
    settings = plain.model_copy(update={"model": plain.model.model_copy(update={"personal": "head"})})
    run = prepare(settings, tmp_path / "run")
    result = simulate(run)
    told = result["personal"]["companies"]
    assert set(told) == {home.name for home in run.homes()}
    assert json.loads((run.path / "result.json").read_bytes())["personal"] == result["personal"]
    model, card = Run.existing(run.path).model()
    for name, figures in told.items():
        path = run.companies / name / PERSONAL_FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        held_out = Examples.load(run.own_heldout / f"{name}.npz")
        lay_over_file(model, card, path)
        assert quality_of(model, held_out) == figures["personal"]
    last = card.round
    assert [each.problem for each in saved_models(run.path)] == [""] * len(saved_models(run.path))
    assert [each.part for each in differences(run, 0, last)][1:] == [
        f"block {b}" for b in range(settings.model.blocks)
    ]
    form = format_of(run, None)
    assert form == "checkpoint"
    written, (folder, readme) = export(run, tmp_path / "out", None, form)
    assert written.guarantee in readme.read_text().replace("\\", "")
    assert not list(folder.glob("personal*"))
    assert not any(
        "personal" in name for part in run.checkpoints.rglob("*.safetensors") for name in _names(part)
    )


def _names(path: Path) -> list[str]:
    from safetensors.torch import load_file

    return list(load_file(path))
