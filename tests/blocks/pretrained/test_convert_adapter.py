"""A peft adapter becomes part of what is converted; peft's own merging is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_models import TINY, save
from torch import Tensor

from fedblocks.blocks.pretrained.adapters import WEIGHTS
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.trunk import tensors_of
from fedblocks.errors import InputError

TARGETS = {"bert-classifier": ["query", "output.dense"], "gpt2": ["c_attn"], "llama": ["q_proj", "down_proj"]}


def made(name: str, folder: Path) -> Any:
    """peft's model, its checkpoint in folder/original and its adapter in folder/adapter."""
    model = TINY[name].made()
    save(model, folder / "original")
    config = LoraConfig(r=3, lora_alpha=12, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2")
    found = get_peft_model(model, config).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for key, parameter in found.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.2)
    found.save_pretrained(folder / "adapter")
    return found


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {
        f"{f.name}/{name}": t
        for f in sorted(folder.glob("*.safetensors"))
        for name, t in tensors_of(f).items()
    }


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_added_to_the_weights(name: str, tmp_path: Path) -> None:
    """Would catch a wrong scale, a transposed map, and a map of another layer or block."""
    model = made(name, tmp_path)
    card = convert(tmp_path / "original", 2, tmp_path / "ours", tmp_path / "adapter")
    save(model.merge_and_unload(), tmp_path / "merged")
    convert(tmp_path / "merged", 2, tmp_path / "theirs")
    ours, theirs = tensors_in(tmp_path / "ours"), tensors_in(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-5
    plain = convert(tmp_path / "original", 2, tmp_path / "plain")
    assert card.digest != plain.digest
    assert card.source != plain.source
    assert convert(tmp_path / "original", 2, tmp_path / "ours", tmp_path / "adapter") == card


def test_one_that_does_not_fit_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    made("llama", tmp_path)
    whole = load_file(tmp_path / "adapter" / WEIGHTS)
    save_file(
        {name.replace("q_proj", "x_proj"): t for name, t in whole.items()}, tmp_path / "adapter" / WEIGHTS
    )
    with pytest.raises(InputError, match=r"x_proj.*no such map"):
        convert(tmp_path / "original", 2, tmp_path / "ours", tmp_path / "adapter")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        convert(tmp_path / "original", 2, tmp_path / "ours", tmp_path / "original")
    assert not (tmp_path / "ours").exists()
