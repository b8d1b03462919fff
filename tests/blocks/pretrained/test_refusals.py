"""What cannot be converted is refused with field, value and rule, and nothing is written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import TINY, Tiny, save, save_tokenizer
from torch import Tensor

from fedblocks.blocks.pretrained.convert import convert
from fedblocks.errors import InputError

FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    save(TINY["llama"].made(), folder / "llama")
    save(TINY["bert"].made(), folder / "bert")
    save(TINY["vit"].made(), folder / "vit")
    save(TINY["llama-tied"].made(), folder / "tied")
    save(TINY["llama"].made(), folder / "sharded", max_shard_size="10KB")
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, "llama", tmp_path)


def copy_of(sound: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / name, tmp_path / name))


def refused(folder: Path, rule: str, blocks: int = 2) -> None:
    """Converting it says this, and writes nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(InputError, match=rule):
        convert(folder, blocks, folder.parent / "converted")
    assert sorted(folder.parent.iterdir()) == before


def configured(folder: Path, file: str = "config.json", **fields: Any) -> None:
    path = folder / file
    raw = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (raw | fields).items() if v is not ...}))


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop(FIRST), rf"{FIRST}=.*is missing"),
    "extra": (lambda t: t.update(stray=torch.ones(2)), "stray=.*does not belong to it"),
    "extra layer": (
        lambda t: t.update({FIRST.replace("0", "7"): t[FIRST].clone()}),
        "layers.7.mlp.up_proj.weight=.*does not belong",
    ),
    "wrong shape": (lambda t: t.update({FIRST: torch.ones(3, 2)}), rf"{FIRST}=\(3, 2\): must have the shape \(40"),
    "transposed": (lambda t: t.update({FIRST: t[FIRST].T.contiguous()}), r"must have the shape \(40, 24\)"),
    "infinite": (lambda t: t[FIRST].view(-1)[-1:].fill_(float("-inf")), rf"{FIRST}=.*not finite"),
    "no number": (lambda t: t["model.norm.weight"][:1].fill_(float("nan")), "model.norm.weight=.*not finite"),
    "half": (lambda t: t.update({FIRST: t[FIRST].half()}), rf"{FIRST}='F16': tensors must be F32 or BF16"),
    "mixed": (lambda t: t.update({FIRST: t[FIRST].bfloat16()}), "dtype='BF16, F32': all tensors must have one"),
    "none": (lambda t: t.clear(), "all tensors must have one precision"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(name: str, model: Path) -> None:
    change, rule = TENSORS[name]
    with_tensors(model, change)
    refused(model, rule)


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "t5"}, "model_type='t5': .*must be one of bert, deit"),
    "no architecture": ({"model_type": ...}, "model_type=None"),
    "an architecture of another kind": ({"model_type": ["llama"]}, r"model_type=\['llama'\]"),
    "another class": ({"architectures": ["LlamaForSequenceClassification"]}, "must name one of LlamaModel"),
    "two classes": ({"architectures": ["LlamaModel", "LlamaForCausalLM"]}, "must name one of"),
    "no class": ({"architectures": ...}, "architectures=None: must name one of"),
    "the bare class": ({"architectures": ["LlamaModel"]}, "no head for the next token"),
    "code": ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map=.*own code, which is never run"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config=.*cannot be adapted"),
    "a kernel": ({"attn_implementation": "someone/kernels"}, "attn_implementation='someone/kernels'"),
    "a hidden kernel": ({"_attn_implementation": "someone/kernels"}, "is not one of transformers' own"),
    "an attention that is a list": ({"_attn_implementation": ["x"]}, "is not one of transformers' own"),
    "fused": ({"fusion_config": {"a": 1}}, "fusion_config"),
    "another file": ({"transformers_weights": "../other.safetensors"}, "transformers_weights"),
    "many layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    "fewer layers": ({"num_hidden_layers": 2}, "layers.2.*does not belong"),
    "a wide model": ({"hidden_size": 10**7}, "hidden_size=10000000: must be at most"),
    "a model that does not fit in memory": (
        {"hidden_size": 2**18, "head_dim": 2**12},
        "describes a model of",
    ),
    "a large vocabulary": ({"vocab_size": 2**16}, r"weight=\(61, 24\): must have the shape \(65536, 24\)"),
    "a vocabulary larger than that": ({"vocab_size": 2**20}, "describes a model of"),
    "many labels": ({"num_labels": 10**12}, "num_labels=1000000000000"),
    "a width that is text": ({"hidden_size": "24"}, "transformers refuses it"),
    "heads that do not divide": (
        {"num_attention_heads": 5, "head_dim": ...},
        "config.json=|must have the shape",
    ),
    "no heads": ({"num_attention_heads": 0}, "transformers refuses it"),
    "an unknown activation": ({"hidden_act": "evil"}, "transformers refuses it"),
    "a padding beyond the vocabulary": ({"pad_token_id": 99}, "pad_token_id|transformers refuses it"),
    "positions by length": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type='dynamic'",
    ),
    "layers of another kind": (
        {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "layer_types": ["chunked_attention"] * 4,
        },
        "layer_types='chunked_attention'|transformers refuses it",
    ),
    "kinds of too few layers": (
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"] * 3},
        "transformers refuses it",
    ),
    "no window": (
        {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "layer_types": ["sliding_attention"] * 4,
        },
        "sliding_window=None: must be at least 1",
    ),
    "an empty window": (
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 0},
        "sliding_window=0: must be at least 1",
    ),
    "no number": ({"rms_norm_eps": float("nan")}, "is no JSON: NaN is no number"),
    "another precision": ({"dtype": "bfloat16"}, "dtype='bfloat16': the tensors are float32"),
    "layers of their own": ({"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_of_strangers_are_refused(name: str, model: Path) -> None:
    """Catches sizes that take memory before they are compared, and values that fetch or run something."""
    fields, rule = CONFIGURATIONS[name]
    configured(model, **fields)
    refused(model, rule)


@pytest.mark.parametrize("blocks", [0, 3, 5, -1])
def test_blocks_that_do_not_divide_the_layers_are_refused_with_those_that_do(
    model: Path, blocks: int
) -> None:
    refused(model, rf"blocks={blocks}: must divide the model's 4 layers: one of 1, 2, 4$", blocks)


def test_a_decoder_of_an_encoders_class_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = copy_of(sound, "bert", tmp_path)
    configured(folder, is_decoder=True)
    refused(folder, "is_decoder=True: only encoders")


def test_values_that_differ_where_the_configuration_ties_them_are_refused(
    sound: Path, tmp_path: Path
) -> None:
    """Catches a model that transformers unties with a warning, and whose export would be tied again."""
    folder = copy_of(sound, "tied", tmp_path)
    with_tensors(folder, lambda t: t.update({"lm_head.weight": torch.ones(61, 24)}))
    refused(folder, "lm_head.weight=.*ties this tensor to model.embed_tokens.weight")


def test_a_class_that_fits_the_tensors_is_named(tmp_path: Path) -> None:
    """bert-base-uncased itself names a class without its pooler; the refusal says what to write instead."""
    save(Tiny("BertConfig", "BertForPreTraining", TINY["bert"].fields).made(), tmp_path / "bert")
    configured(tmp_path / "bert", architectures=["BertForMaskedLM"])
    refused(
        tmp_path / "bert", r"bert.pooler.dense.bias=.*are those of BertForPreTraining: name that class in"
    )
    configured(tmp_path / "bert", architectures=["BertForPreTraining"])
    assert convert(tmp_path / "bert", 2, tmp_path / "converted").model_class == "BertForPreTraining"


def test_an_infinite_number_is_refused(model: Path) -> None:
    """Catches 1e999, which Python's JSON reads as infinity without a word."""
    text = (model / "config.json").read_text().replace("1e-06", "1e999")
    (model / "config.json").write_text(text)
    refused(model, "rms_norm_eps=inf: must be finite")


def test_a_pickle_is_refused_by_name(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, r"pytorch_model.bin': is a pickle, which can run code")
    (model / "pytorch_model.bin").unlink()
    refused(model, "has no model.safetensors")


def test_a_file_that_is_not_whole_is_refused(model: Path) -> None:
    """Catches truncated files, headers that lie about sizes, and files of something else."""
    path = model / "model.safetensors"
    whole = path.read_bytes()
    header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for content in (
        whole[:-1],
        whole[:100],
        b"",
        b"PK\x03\x04" * 20,
        struct.pack("<Q", len(header)) + header,
    ):
        path.write_bytes(content)
        refused(model, r"model.safetensors=.*is no whole safetensors file")


def test_json_that_cannot_be_read_is_refused(model: Path) -> None:
    for content, rule in (
        ("{", "is no JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 100_000, "is no JSON"),
        ("{" + " " * (16 << 20) + "}", "larger than 16 MiB"),
    ):
        (model / "config.json").write_text(content)
        refused(model, rule)
    (model / "config.json").unlink()
    refused(model, "has no config.json")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a folder")
    refused(tmp_path / "nothing", "is not a folder")


INDICES: dict[str, tuple[Callable[[dict[str, str]], Any], str]] = {
    "outside": (
        lambda m: m.update({FIRST: "../model.safetensors"}),
        "must name a safetensors file of the folder",
    ),
    "absolute": (lambda m: m.update({FIRST: "/etc/passwd"}), "must name a safetensors file"),
    "a pickle": (lambda m: m.update({FIRST: "pytorch_model.bin"}), "must name a safetensors file"),
    "no text": (lambda m: m.update({FIRST: 3}), "must name a safetensors file"),  # type: ignore[dict-item]
    "a file that is missing": (lambda m: m.update({FIRST: "other.safetensors"}), "is not in the folder"),
    "another file": (lambda m: m.update({FIRST: m["model.norm.weight"]}), f"{FIRST}'?: is in .*, not in"),
    "a tensor that is missing": (lambda m: m.update(stray=m[FIRST]), "stray'?: is in .* alone"),
    "a tensor less": (lambda m: m.pop(FIRST), f"{FIRST}'?: is in .* alone"),
    "nothing": (lambda m: m.clear(), "must have a weight_map"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_leads_elsewhere_is_refused(name: str, sound: Path, tmp_path: Path) -> None:
    folder = copy_of(sound, "sharded", tmp_path)
    change, rule = INDICES[name]
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    refused(folder, rule)


def test_a_checkpoint_in_several_files_is_that_in_one(sound: Path, tmp_path: Path) -> None:
    """Catches a part that is not read."""
    one = convert(sound / "llama", 2, tmp_path / "one")
    several = convert(sound / "sharded", 2, tmp_path / "several")
    tensors = {name for name in one.files if name.endswith(".safetensors")}
    assert {name: one.files[name] for name in tensors} == {name: several.files[name] for name in tensors}


def test_links_that_lead_out_of_the_folder_are_refused(model: Path, tmp_path: Path) -> None:
    """Catches a secret of this machine that becomes a file of the export."""
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name in ("merges.txt", "tokenizer_config.json", "model.safetensors", "config.json"):
        kept = (model / name).read_bytes() if (model / name).exists() else None
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(secret)
        refused(model, f"{name}=.*must be a file of the folder")
        (model / name).unlink()
        if kept is not None:
            (model / name).write_bytes(kept)


def test_links_of_the_hubs_cache_are_followed(sound: Path, tmp_path: Path) -> None:
    """Catches a refusal of folders as huggingface_hub lays them out."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(sound / "llama", blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert convert(snapshot, 2, tmp_path / "a").digest == convert(sound / "llama", 2, tmp_path / "b").digest


def test_a_tokenizer_that_is_missing_or_does_not_match_is_refused(model: Path) -> None:
    save_tokenizer(model, 62)
    refused(model, r"tokenizer.json=.*has token 61, the model embeds 61: it belongs to another model")
    (model / "tokenizer.json").write_text('{"model": {}}')
    refused(model, "tokenizer.json=.*cannot be read")
    (model / "tokenizer.json").unlink()
    refused(model, "has no tokenizer.json")


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "generation_config.json", "preprocessor_config.json"]
)
def test_code_named_by_a_companion_is_refused(file: str, model: Path) -> None:
    configured(model, file, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    refused(model, f"{file}: auto_map=.*never run")


def test_images_of_a_size_that_does_not_fit_in_memory_are_refused(sound: Path, tmp_path: Path) -> None:
    """Catches positions that are drawn for 2^24 patches, 50 GB, before their number is compared."""
    folder = copy_of(sound, "vit", tmp_path)
    configured(folder, image_size=2**12, patch_size=1, hidden_size=768)
    refused(folder, "describes a model of 12,8")


def test_a_normalisation_that_does_not_fit_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = copy_of(sound, "vit", tmp_path)
    for fields, rule in (
        ({"image_mean": [0.5], "image_std": [0.5] * 3}, r"image_mean=\[0.5\]: must be 3 numbers"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5, 0, 1]}, "image_std=.*must be positive"),
        ({"image_mean": "0.5", "image_std": [1] * 3}, "must be 3 numbers"),
    ):
        configured(folder, "preprocessor_config.json", **fields)
        refused(folder, rule)
