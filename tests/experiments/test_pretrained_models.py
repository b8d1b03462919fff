"""Built-in pretrained models: made once, as a whole, and made anew where they are not what was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedblocks.errors import InputError
from fedblocks.experiments.pretrained_models import kept
from fedblocks.experiments.pretrained_models.kept import Recipe, built_in_model, settle_built_in


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the one model of an own cache was made."""
    counts: list[int] = []

    def make(to: Path, on_step: kept.Progress) -> None:
        counts.append(1)
        (to / "config.json").write_text("{}")
        on_step(1, 2)
        (to / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("FEDBLOCKS_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "_MADE_HERE", {"quick": Recipe(3, make)})
    return counts


def test_a_model_is_made_once_and_again_where_a_file_of_it_changed(made: list[int], tmp_path: Path) -> None:
    """Would catch minutes of training at every run, and a damaged model that is used."""
    folder = built_in_model("quick")
    assert folder == tmp_path / "models" / "quick-3"
    assert built_in_model("quick") == folder
    assert len(made) == 1
    (folder / "model.safetensors").write_bytes(b"others")
    assert (built_in_model("quick") / "model.safetensors").read_bytes() == b"weights"
    (folder / "made.json").unlink()
    built_in_model("quick")
    assert len(made) == 3


def test_what_is_interrupted_leaves_nothing(made: list[int], tmp_path: Path) -> None:
    """Would catch half a model that the next run takes for a whole one."""

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_in_model("quick", stop)
    assert [each for each in (tmp_path / "models").iterdir() if each.is_dir()] == []
    assert built_in_model("quick").is_dir()


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"pretrained": "built-in:nothing", "blocks": 3}, "pretrained"),
        ({"pretrained": "built-in:quick"}, "model.blocks"),
    ],
)
def test_a_wrong_name_or_no_number_of_blocks_is_refused(
    made: list[int], model: dict[str, Any], field: str
) -> None:
    """Would catch minutes of training before a mistake is told."""
    with pytest.raises(InputError, match=f"^{field}"):
        settle_built_in({"model": model})
    assert made == []


def test_settings_that_name_no_built_in_model_are_left_alone(made: list[int]) -> None:
    """Would catch a family without a pretrained model, or a company's own folder, that is touched."""
    for raw in ({}, {"model": {"family": "vit"}}, {"model": {"pretrained": "a/folder"}}, {"model": "wrong"}):
        before = {**raw}
        settle_built_in(raw)
        assert raw == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "small-llama", "small-vit"])
def test_every_built_in_model_can_be_converted_and_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a recipe whose checkpoint transformers, or `fedblocks convert`, does not take."""
    import torch
    from transformers import AutoModel

    from fedblocks.blocks.pretrained.card import read_card
    from fedblocks.client.data.text.own_tokenizer import OwnTokenizer
    from fedblocks.experiments.pretrained_models import built_in_conversion, small_llama, small_vit

    monkeypatch.setenv("FEDBLOCKS_CACHE", str(tmp_path))
    for recipe in (small_llama, small_vit):
        monkeypatch.setattr(recipe, "STEPS", 3)
    monkeypatch.setattr(small_llama, "_MOST_CHARACTERS", 200_000)
    model = built_in_model(name)
    loaded = AutoModel.from_pretrained(model, local_files_only=True)
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    folder = built_in_conversion(name, 3)
    card = read_card(folder)
    assert card.blocks == 3
    assert built_in_conversion(name, 3) == folder
    if name != "small-vit":
        tokenizer = OwnTokenizer.of("model.pretrained", folder)
        assert tokenizer.vocabulary <= card.vocabulary
        (ids,) = tokenizer.whole(["How are the rows of a sparse matrix summed?"])
        assert "sparse matrix" in tokenizer.decode(np.array(ids)).lower()
