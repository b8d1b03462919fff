"""Low-rank adapters go to peft and come from it: the same outputs, peft's own code as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.clipping_loop import clipped_sum, flat, gradients_one_by_one
from support.tiny_models import TINY, VOCABULARY, save
from torch import Tensor, nn

from fedblocks.blocks.pretrained.adapters import CONFIG, WEIGHTS, load_adapter, save_adapter
from fedblocks.blocks.pretrained.card import ConvertedCard
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.lora import LoRALinear, add_lora
from fedblocks.blocks.pretrained.trunk import Trunk, build
from fedblocks.errors import InputError
from fedblocks.privacy.clipping import PerExampleClipping

# What has adapters in each: a map of attention and one that is called the same in two places.
TARGETS = {
    "bert": ["query", "attention.output.dense"],
    "bert-classifier": ["query"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "down_proj"],
}
EACH = pytest.mark.parametrize("name", TARGETS)


class Converted:
    """A model of transformers beside its conversion into two blocks."""

    def __init__(self, name: str, folder: Path) -> None:
        model = TINY[name].made()
        self.model_class = type(model)
        self.original = save(model, folder / "original")
        self.folder = folder / "converted"
        self.card: ConvertedCard = convert(self.original, 2, self.folder)
        self.trunk, self.blocks = build(self.folder)
        self.tokens = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))

    def transformers_model(self) -> Any:
        return self.model_class.from_pretrained(self.original, attn_implementation="sdpa").eval()

    def ours(self) -> Tensor:
        return hidden(self.trunk, self.blocks, self.tokens, self.card.kind == "decoder")

    def theirs(self, model: PeftModel) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.get_base_model().base_model(self.tokens).last_hidden_state
        return found


def hidden(trunk: Trunk, blocks: list[nn.ModuleList], tokens: Tensor, causal: bool) -> Tensor:
    with torch.no_grad():
        x = trunk.embed(tokens)
        allowed = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
        for block, layers in enumerate(blocks):
            first = 2 * block
            x = trunk.run(layers, x, allowed.tril() if causal else allowed, torch.arange(x.shape[1]), first)
        return trunk.finish(x)


def drawn(modules: Any, kinds: tuple[str, ...]) -> None:
    """Adapters as after training: B is not zero any more."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in modules:
            if any(kind in name for kind in kinds):
                parameter.normal_(std=0.2)


@EACH
def test_an_adapter_of_peft_computes_the_same_in_ours(name: str, tmp_path: Path) -> None:
    """Catches another scale, a map that is left out, and names of a class with a head."""
    pair = Converted(name, tmp_path)
    config = LoraConfig(
        r=3, lora_alpha=12, target_modules=TARGETS[name], lora_dropout=0.1, fan_in_fan_out=name == "gpt2"
    )
    theirs = get_peft_model(pair.transformers_model(), config).eval()
    drawn(theirs.named_parameters(), ("lora_A", "lora_B"))
    theirs.save_pretrained(tmp_path / "adapter")
    plain = pair.ours()
    names = load_adapter(pair.blocks, pair.card, tmp_path / "adapter")
    assert len(names) == len(load_file(tmp_path / "adapter" / WEIGHTS)) // 2
    assert (pair.ours() - pair.theirs(theirs)).abs().max() < 1e-4
    assert (pair.ours() - plain).abs().max() > 1e-2


@EACH
def test_an_adapter_of_ours_computes_the_same_in_peft(name: str, tmp_path: Path) -> None:
    """Catches a file that peft ignores in part: it says so by a warning alone."""
    pair = Converted(name, tmp_path)
    for layers in pair.blocks:
        add_lora(layers, TARGETS[name], rank=3, alpha=12.0)
        drawn(layers.named_parameters(), (".A.", ".B."))
    save_adapter(pair.blocks, pair.card, pair.folder, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(pair.transformers_model(), tmp_path / "adapter").eval()
    assert (pair.ours() - pair.theirs(theirs)).abs().max() < 1e-4
    loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert len(loaded) == len(load_file(tmp_path / "adapter" / WEIGHTS))


def test_one_block_alone_can_have_adapters(tmp_path: Path) -> None:
    """Catches targets that peft finds in the other blocks, too."""
    pair = Converted("llama", tmp_path)
    add_lora(pair.blocks[1], ["q_proj"], rank=2, alpha=4.0)
    drawn(pair.blocks[1].named_parameters(), (".A.", ".B."))
    save_adapter(pair.blocks, pair.card, pair.folder, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(pair.transformers_model(), tmp_path / "adapter").eval()
    assert len([name for name, _ in theirs.named_parameters() if "lora_A" in name]) == 2
    assert (pair.ours() - pair.theirs(theirs)).abs().max() < 1e-4


def test_an_adapter_begins_as_nothing_and_its_base_stays(tmp_path: Path) -> None:
    """Catches adapters that move the model before a step, or train the base."""
    pair = Converted("llama", tmp_path)
    plain = pair.ours()
    names = add_lora(pair.blocks[0], ["q_proj", "self_attn.v_proj"], rank=2, alpha=4.0)
    assert names == [f"{layer}.self_attn.{own}_proj" for layer in (0, 1) for own in ("q", "v")]
    assert torch.equal(pair.ours(), plain)
    trained = {name for name, each in pair.blocks[0].named_parameters() if each.requires_grad}
    assert trained == {f"{name}.{part}.weight" for name in names for part in ("A", "B")}


def test_adapters_are_clipped_as_autograd_says_beside_a_base_in_half_precision() -> None:
    """Catches an adapter whose gradient passes private clipping by, or that trains in bfloat16."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(12, 8).bfloat16(), rank=2, alpha=4.0)
    nn.init.normal_(layer.B.weight)
    x = torch.randn(4, 5, 12).bfloat16()

    def losses(places: Tensor) -> Tensor:
        out = layer(x[places])
        assert out.dtype == torch.bfloat16
        return out.float().square().sum(dim=(1, 2))

    with PerExampleClipping(layer, max_grad_norm=3.0) as clipping:
        found = clipping.sum(losses, examples=4)
    wanted = clipped_sum(gradients_one_by_one(layer, losses, examples=4), flat(3.0))
    torch.testing.assert_close(found.vector, wanted, rtol=1e-4, atol=1e-5)
    assert found.vector.numel() == 2 * 12 + 8 * 2


@pytest.mark.parametrize("target", ["proj", "q_proj.", "", "embed_tokens", "input_layernorm"])
def test_a_target_that_names_no_linear_map_is_refused(target: str, tmp_path: Path) -> None:
    pair = Converted("llama", tmp_path)
    with pytest.raises(InputError, match=r"model.lora_targets=.*names no linear map; there are .*q_proj"):
        add_lora(pair.blocks[0], ["q_proj", target], rank=2, alpha=4.0)
    assert not any(isinstance(module, LoRALinear) for module in pair.blocks[0].modules())


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Converted, Path]:
    pair = Converted("llama", tmp_path)
    for layers in pair.blocks:
        add_lora(layers, ["q_proj"], rank=3, alpha=12.0)
    save_adapter(pair.blocks, pair.card, pair.folder, tmp_path / "adapter")
    pair.blocks = build(pair.folder)[1]
    return pair, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("peft_type", "IA3", "LORA"),
        ("r", 4, "must have the shape"),
        ("r", 0, "greater than"),
        ("use_dora", True, "must not be set"),
        ("use_rslora", True, "must not be set"),
        ("bias", "all", "none"),
        ("rank_pattern", {"q_proj": 2}, "must not be set"),
        ("modules_to_save", ["lm_head"], "must not be set"),
        ("lora_alpha", float("nan"), "less than"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(
    adapter: tuple[Converted, Path], field: str, value: object, rule: str
) -> None:
    pair, folder = adapter
    raw = json.loads((folder / CONFIG).read_bytes()) | {field: value}
    (folder / CONFIG).write_text(json.dumps(raw))
    refused(pair, folder, rule)


def test_tensors_that_do_not_fit_are_refused_by_name(adapter: tuple[Converted, Path]) -> None:
    """Catches a head, a half pair, an unknown layer, and values that are not finite."""
    pair, folder = adapter
    whole = load_file(folder / WEIGHTS)
    first = sorted(whole)[0]
    for changed, rule in (
        ({**whole, "base_model.model.lm_head.weight": torch.ones(2, 2)}, "must be lora_A or lora_B"),
        ({name: each for name, each in whole.items() if name != first}, "both lora_A and lora_B"),
        ({name.replace("layers.3", "layers.4"): each for name, each in whole.items()}, "has 4 layers"),
        ({name.replace("q_proj", "x_proj"): each for name, each in whole.items()}, "no such map"),
        ({name.replace("self_attn.q_proj", "mlp"): each for name, each in whole.items()}, "no linear map"),
        (whole | {first: torch.full_like(whole[first], float("inf"))}, "finite"),
    ):
        save_file(changed, folder / WEIGHTS)
        refused(pair, folder, rule)
    (folder / WEIGHTS).write_bytes(b"\x00" * 20)
    refused(pair, folder, "no whole safetensors file")


def refused(pair: Converted, folder: Path, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        load_adapter(pair.blocks, pair.card, folder)
    assert not any(isinstance(each, LoRALinear) for layers in pair.blocks for each in layers.modules())
