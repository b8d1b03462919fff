"""A converted model at step zero against the original, of every architecture, and after the way back.

Models of random weights, made from transformers' own configurations; and MiniLM as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....blocks.pretrained.architectures import architecture_names
from ....blocks.pretrained.convert import convert
from ....blocks.pretrained.export import export
from ....blocks.pretrained.skeleton import quiet
from ....blocks.pretrained.trunk import build
from ...pretrained_models import built_in_model

_VOCABULARY, _TOKENS, _BLOCKS = 61, 17, 2
_SIZES = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40,
    "initializer_range": 0.3,
}  # fmt: skip
_TEXT = {"vocab_size": _VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0}
_IMAGE = {**_SIZES, "image_size": 12, "patch_size": 4}
_DECODER = {
    **_SIZES, **_TEXT, "num_key_value_heads": 2, "head_dim": 6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# By model_type: the class of the configuration and of the model, and the configuration's fields.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {**_SIZES, **_TEXT}),
    "deit": ("DeiTConfig", "DeiTModel", _IMAGE),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**_IMAGE, "mlp_ratio": 2}),
    "distilbert": (
        "DistilBertConfig", "DistilBertModel",
        {**_TEXT, "dim": 24, "hidden_dim": 40, "n_layers": 4, "n_heads": 4, "initializer_range": 0.3},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _DECODER),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_DECODER, "query_pre_attn_scalar": 6}),
    "gpt2": (
        "GPT2Config", "GPT2LMHeadModel",
        {"vocab_size": _VOCABULARY, "n_positions": 40, "n_embd": 24, "n_layer": 4, "n_head": 4,
         "initializer_range": 0.3},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, "sliding_window": 5}),
    "modernbert": ("ModernBertConfig", "ModernBertModel", {**_SIZES, **_TEXT, "local_attention": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "vit": ("ViTConfig", "ViTModel", _IMAGE),
}  # fmt: skip


def measure(seeds: int, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """`exactness`: the largest difference of any output, in float32; `round_trip`: whether exports are identical."""
    differences, identical = {}, {}
    for name in (*architecture_names(), "minilm"):
        with tempfile.TemporaryDirectory(prefix="fedblocks-exact-") as folder:
            differences[name], identical[name] = _compared(name, Path(folder))
        on_progress(f"{name}: {differences[name]:.2g}, round trip identical: {identical[name]}")
    return {
        "exactness": max(differences.values()),
        "round_trip_identical": all(identical.values()),
        "exactness_by_architecture": {name: float(f"{value:.3g}") for name, value in differences.items()},
    }


@torch.no_grad()
def _compared(name: str, folder: Path) -> tuple[float, bool]:
    """The largest difference of the last hidden states, and whether the exported model's are the original's."""
    import transformers

    if name == "minilm":
        original, kind = built_in_model(name), "BertModel"
    else:
        original, kind = folder / "original", MODELS[name][1]
        _save(name, original)
    card = convert(original, _BLOCKS, folder / "converted")
    trunk, blocks = build(folder / "converted")
    export(trunk, blocks, card, folder / "converted", folder / "exported", {})
    with quiet():
        of_class = getattr(transformers, kind)
        theirs, back = (
            of_class.from_pretrained(path, attn_implementation="sdpa", local_files_only=True).eval()
            for path in (original, folder / "exported")
        )
    generator = torch.Generator().manual_seed(5)
    if card.kind == "vision":
        side = card.image_size or 1
        size = (3, card.channels or 1, side, side)
        inputs = torch.rand(size, generator=generator)
        given = inputs
        if card.mean:
            mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
            given = (inputs - mean) / std
    else:
        inputs = given = torch.randint(
            1, min(_VOCABULARY, card.vocabulary or 2), (3, _TOKENS), generator=generator
        )
    wanted: Tensor = theirs.base_model(given).last_hidden_state
    x = trunk.embed(inputs)
    tokens = x.shape[1]
    allowed = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril() if card.kind == "decoder" else None
    for b, layers in enumerate(blocks):
        x = trunk.run(layers, x, allowed, torch.arange(tokens), b * card.per_block)
    difference = float((trunk.finish(x) - wanted).abs().max())
    return difference, torch.equal(theirs(given)[0], back(given)[0])


def _save(name: str, to: Path) -> None:
    """A model of random weights, as transformers writes it."""
    import transformers
    from tokenizers import Tokenizer, models

    config, kind, fields = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        with quiet():
            model = getattr(transformers, kind)(getattr(transformers, config)(**fields))
            model.save_pretrained(to)
    if model.main_input_name == "input_ids":
        words = models.WordLevel({f"w{i}": i for i in range(_VOCABULARY)}, unk_token="w0")
        Tokenizer(words).save(str(to / "tokenizer.json"))
