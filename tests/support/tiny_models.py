"""Tiny random models of every architecture that can be converted, saved as transformers saves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY, LONGEST = 61, 40
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, "pad_token_id": 0}
_ENCODER = {
    **_TEXT, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 6, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 12,
    "patch_size": 4, "num_channels": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A model of transformers: its class, and the fields of its configuration."""

    config: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)

    def made(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model, every tensor of it drawn at random."""
        import transformers

        config = getattr(transformers, self.config)(**self.fields)
        config._attn_implementation = "sdpa"
        model = getattr(transformers, self.model)(config).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = (
                    "norm" in name.lower() and name.endswith("weight") and not self.config.startswith("Gemma")
                )
                centre = 1.0 if scale else 0.0  # Gemma's norms add 1 themselves
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
        model.tie_weights()
        return model.to(dtype)


def _with(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**fields, **more}


_GEMMA3 = _with(
    _DECODER,
    sliding_window=5,
    query_pre_attn_scalar=6,
    layer_types=["sliding_attention", "full_attention"] * 2,
    final_logit_softcapping=3.0,
)

TINY: dict[str, Tiny] = {
    "bert": Tiny("BertConfig", "BertModel", _ENCODER),
    "bert-masked-lm": Tiny("BertConfig", "BertForMaskedLM", _ENCODER),
    "bert-classifier": Tiny("BertConfig", "BertForSequenceClassification", _with(_ENCODER, num_labels=3)),
    "distilbert": Tiny(
        "DistilBertConfig",
        "DistilBertModel",
        {**_TEXT, "dim": 24, "hidden_dim": 40, "n_layers": 4, "n_heads": 4},
    ),
    "modernbert": Tiny(
        "ModernBertConfig",
        "ModernBertModel",
        _with(_ENCODER, local_attention=8, global_attn_every_n_layers=2),
    ),
    "vit": Tiny("ViTConfig", "ViTModel", _IMAGE),
    "vit-classifier": Tiny("ViTConfig", "ViTForImageClassification", _with(_IMAGE, num_labels=3)),
    "deit": Tiny("DeiTConfig", "DeiTModel", _IMAGE),
    "dinov2": Tiny("Dinov2Config", "Dinov2Model", {**_IMAGE, "mlp_ratio": 2}),
    "dinov2-swiglu": Tiny(
        "Dinov2Config", "Dinov2ForImageClassification", {**_IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True}
    ),
    "gpt2": Tiny(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": LONGEST, "n_embd": 24, "n_layer": 4, "n_head": 4},
    ),
    "llama": Tiny("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "llama-tied": Tiny(
        "LlamaConfig", "LlamaForCausalLM", _with(_DECODER, tie_word_embeddings=True, attention_bias=True)
    ),
    "llama-3": Tiny(
        "LlamaConfig",
        "LlamaForCausalLM",
        _with(
            _DECODER,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        ),
    ),
    "qwen2": Tiny(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _with(_DECODER, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ),
    "qwen3": Tiny("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "mistral": Tiny("MistralConfig", "MistralForCausalLM", _with(_DECODER, sliding_window=5)),
    "gemma": Tiny("GemmaConfig", "GemmaForCausalLM", _DECODER),
    "gemma3": Tiny("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA3),
}


def save_tokenizer(folder: Path, tokens: int = VOCABULARY) -> None:
    """A tokenizer of whole words `w0`, `w1`, ..."""
    words = {f"w{number}": number for number in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def save(model: Any, folder: Path, **how: Any) -> Path:
    """Save a model as users would, with a tokenizer where it reads text."""
    model.save_pretrained(folder, **how)
    if model.main_input_name == "input_ids":
        save_tokenizer(folder)
    return folder
