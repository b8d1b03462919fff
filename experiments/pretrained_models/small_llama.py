"""A small Llama of transformers, trained on the docstrings of NumPy, SciPy, SymPy and NetworkX.

All four come with PyTorch or fedblocks itself. The standard library's documentation, which presets adapt it to, is
not among what it has read.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import Any

import torch

from ...client.data.labelled_text.documentation import docstrings
from .fitting import Progress, fit

STEPS, BATCH, LENGTH = 600, 16, 128
VOCABULARY = 2048
_PACKAGES = ("numpy", "scipy", "sympy", "networkx")
_LEAST_CHARACTERS = 200
_MOST_CHARACTERS = 5_000_000
_END = "<|end|>"


def make(to: Path, on_step: Progress) -> None:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files."""
    import transformers

    documents = _documents()
    tokenizer = _tokenizer(documents)
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(documents):
        ids += [*encoded.ids, 0]
    tokens = torch.tensor(ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=6,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2 * LENGTH,
                bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
            )
        )  # fmt: skip

        def loss(generator: torch.Generator) -> torch.Tensor:
            starts = torch.randint(len(tokens) - LENGTH, (BATCH, 1), generator=generator)
            rows = tokens[starts + torch.arange(LENGTH)]  # (BATCH, LENGTH)
            found: torch.Tensor = model(input_ids=rows, labels=rows).loss
            return found

        fit(model, loss, steps=STEPS, learning_rate=3e-3, on_step=on_step)
    model.save_pretrained(to)
    tokenizer.save(str(to / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2 * LENGTH, "bos_token": _END,
        "eos_token": _END, "pad_token": _END,
    }  # fmt: skip
    (to / "tokenizer_config.json").write_text(json.dumps(told, indent=1), "utf-8")


def _documents() -> list[str]:
    """Docstrings in an order that mixes the packages, so that the first ones are of them all."""
    found: dict[bytes, str] = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for file in sorted(root.rglob("*.py")):
            if "/test" not in file.relative_to(root).as_posix():
                for docstring in docstrings(file.read_text("utf-8", "replace")):
                    text = cleandoc(docstring)
                    if len(text) >= _LEAST_CHARACTERS:
                        found[hashlib.sha256(text.encode()).digest()] = text
    kept, characters = [], 0
    for digest in sorted(found):
        characters += len(found[digest])
        if characters > _MOST_CHARACTERS:
            break
        kept.append(found[digest])
    return kept


def _tokenizer(documents: list[str]) -> Any:
    """Byte pairs over bytes: any text has tokens, and comes back from them as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer
