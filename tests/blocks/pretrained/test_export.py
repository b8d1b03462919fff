"""Round trips: converted, exported and loaded by transformers alone, a model has the same tensors and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import TINY, VOCABULARY, save
from torch import Tensor, nn

from fedblocks.blocks.pretrained import export as exporting
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.export import export
from fedblocks.blocks.pretrained.lora import LoRALinear, add_lora
from fedblocks.blocks.pretrained.trunk import build
from fedblocks.errors import InputError

ONE_EACH = ["bert", "bert-classifier", "vit", "gpt2", "llama", "llama-tied", "gemma3"]


def inputs_of(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if model.main_input_name == "pixel_values":
        return torch.rand(2, 3, 12, 12, generator=generator)
    return torch.randint(1, VOCABULARY, (2, 9), generator=generator)


def output_of(model: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(inputs)[0]
    return found


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in TINY]
    + [(name, torch.bfloat16) for name in ("bert-masked-lm", *ONE_EACH)],
)
def test_a_round_trip_gives_the_same_files_and_the_same_outputs(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Catches a tensor that is lost, renamed, transposed, rounded or written twice, and another configuration."""
    model = TINY[name].made(dtype)
    original = save(model, tmp_path / "original")
    card = convert(original, 4, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted")
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {"README.md": b"# A model\n"})
    before, after = tensors_in(original), tensors_in(tmp_path / "exported")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[each], after[each]) for each in before)
    assert (tmp_path / "exported/config.json").read_bytes() == (original / "config.json").read_bytes()
    assert (tmp_path / "exported/README.md").read_text() == "# A model\n"
    if card.kind != "vision":
        tokenizer = "tokenizer.json"
        assert (tmp_path / "exported" / tokenizer).read_bytes() == (original / tokenizer).read_bytes()
    how: dict[str, Any] = {"dtype": "auto", "attn_implementation": "sdpa", "output_loading_info": True}
    loaded, info = type(model).from_pretrained(tmp_path / "exported", **how)
    first, _ = type(model).from_pretrained(original, **how)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = inputs_of(model).to(dtype if card.kind == "vision" else torch.long)
    assert torch.equal(output_of(loaded.eval(), inputs), output_of(first.eval(), inputs))


@pytest.mark.parametrize("name", ONE_EACH)
def test_an_exported_model_has_its_adapters_merged(name: str, tmp_path: Path) -> None:
    """Catches a merge into the wrong weight, with the wrong scale, or the wrong way round."""
    model = TINY[name].made()
    original = save(model, tmp_path / "original")
    card = convert(original, 2, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted")
    target = {"gpt2": "c_attn", "bert": "query", "bert-classifier": "query"}.get(name, "q_proj")
    for layers in blocks:
        add_lora(layers, [target], rank=3, alpha=6.0)
        for module in layers.modules():
            if isinstance(module, LoRALinear):
                nn.init.normal_(module.B.weight, std=0.3)
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    loaded = type(model).from_pretrained(tmp_path / "exported", attn_implementation="sdpa").eval()
    again = convert(tmp_path / "exported", 2, tmp_path / "again")
    inputs = inputs_of(model)
    with torch.no_grad():
        x = trunk.embed(inputs)
        tokens = x.shape[1]
        allowed = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        allowed = allowed.tril() if card.kind == "decoder" else allowed
        for first, layers in ((0, blocks[0]), (2, blocks[1])):
            x = trunk.run(layers, x, allowed, torch.arange(tokens), first)
        wanted = trunk.finish(x)
    found = loaded.base_model(inputs).last_hidden_state
    assert (found - wanted).abs().max() < 1e-4
    assert (found - model.base_model(inputs).last_hidden_state).abs().max() > 1e-2
    assert again.source != card.source


def test_a_block_that_was_not_loaded_is_taken_from_the_converted_folder(tmp_path: Path) -> None:
    """Catches an export that needs all blocks in memory, or loses those that were not."""
    original = save(TINY["llama"].made(), tmp_path / "original")
    card = convert(original, 4, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted", only=1)
    assert [len(layers) for layers in blocks] == [0, 1, 0, 0]
    with torch.no_grad():
        for parameter in blocks[1].parameters():
            parameter.mul_(2)
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    before, after = tensors_in(original), tensors_in(tmp_path / "exported")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name}


def test_what_trained_in_float32_goes_back_to_the_precision_of_the_checkpoint(tmp_path: Path) -> None:
    """Catches an export of mixed precision, which transformers would load as something else."""
    original = save(TINY["llama"].made(torch.bfloat16), tmp_path / "original")
    card = convert(original, 4, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted")
    blocks[0].float()
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    assert {tensor.dtype for tensor in tensors_in(tmp_path / "exported").values()} == {torch.bfloat16}


def test_an_interrupted_export_leaves_nothing_and_an_existing_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a half-written checkpoint that loads, and one that replaces another."""
    original = save(TINY["llama"].made(), tmp_path / "original")
    card = convert(original, 4, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(exporting.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "original"]
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    with pytest.raises(InputError, match=r"to=.*already exists"):
        export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})


def test_a_configuration_without_a_precision_is_given_that_of_its_tensors(tmp_path: Path) -> None:
    """Catches a checkpoint that an older transformers would load in float32."""
    original = save(TINY["gpt2"].made(torch.bfloat16), tmp_path / "original")
    raw = json.loads((original / "config.json").read_bytes())
    del raw["dtype"]
    (original / "config.json").write_text(json.dumps(raw))
    card = convert(original, 4, tmp_path / "converted")
    trunk, blocks = build(tmp_path / "converted")
    export(trunk, blocks, card, tmp_path / "converted", tmp_path / "exported", {})
    assert json.loads((tmp_path / "exported/config.json").read_bytes()) == raw | {"dtype": "bfloat16"}
