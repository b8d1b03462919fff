"""Predictions of pretrained families: classes of texts, continuations and scores, transformers as the oracle."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import Done, Machine, run_command
from support.tiny_models import TINY, save
from torch import Tensor

from fedblocks.blocks import Denoiser, ModelCard, build_model, digest, metric_of, sample_chain, split
from fedblocks.blocks.families import family
from fedblocks.blocks.families.pretrained_decoder import PretrainedDecoder, go_on
from fedblocks.blocks.model_file import load_model, save_model
from fedblocks.blocks.pretrained import places
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client.data.findings import Findings
from fedblocks.client.prediction import Predictions, Wanted, predict
from fedblocks.client.prediction.converted import converted_model
from fedblocks.errors import InputError

TEXTS = ["w5 w6 w7 w8", "w9", "w10 w11 w12 w13 w14 w15 w16 w17"]
CONTRACT = {"kind": "labelled-text", "text": "words", "labels": ["cat", "dog", "eel"]}


def made(name: str, tiny: str, folder: Path, **settings: Any) -> tuple[Denoiser, ModelCard]:
    """A model of the family of random weights, and its card."""
    save(TINY[tiny].made(), folder / "original")
    convert(folder / "original", 2, folder / "converted")
    told = {"pretrained": str(folder / "converted"), **settings}
    chosen = family(name).settings.model_validate(told)
    torch.manual_seed(1)
    model = build_model(chosen, NoiseSettings()).eval()
    trained = {f"blocks.{b}.{each}" for b in range(2) for each in model.trainable(b, True)}
    for key, parameter in model.named_parameters():
        if key in trained:
            parameter.data += 0.2 * torch.randn_like(parameter)
    state = split(model)
    card = ModelCard(
        version="0", run="r", round=1, rounds=1, plan="", guarantee="", model=chosen, noise=NoiseSettings(),
        metric=metric_of(chosen).name, digest=digest(state.shared, *state.blocks).hex(),
        contract=CONTRACT if chosen.connector == "labelled-text" else None,
        labels=("cat", "dog", "eel") if chosen.connector == "labelled-text" else None,
    )  # fmt: skip
    return model, card


def asked(model: Denoiser, card: ModelCard, **wanted: Any) -> Predictions:
    return predict(model, card, Wanted(**wanted), Findings("input"))


def test_texts_are_classified_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    """JSON lines, CSV, Parquet and plain lines; would catch a label read as a text, another tokenizer, a blank line
    that shifts names, and probabilities under another class's name."""
    import pyarrow as pa
    from pyarrow import parquet

    model, card = made("pretrained-text-classifier", "bert", tmp_path, sequence_length=6, classes=3)
    tokens = torch.zeros(3, 6, dtype=torch.long)
    for row, text in zip(tokens, TEXTS, strict=True):
        ids = [int(word[1:]) for word in text.split()][:6]
        row[: len(ids)] = torch.tensor(ids)
    like, seeded = torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0)
    shares = sample_chain(model, tokens, like, seeded)[-1].softmax(dim=1).numpy()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"words": text}) + "\n" for text in TEXTS))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "words"], *enumerate(TEXTS)])
    parquet.write_table(pa.table({"words": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS) + "\n")
    for name, found in (
        ("a.jsonl", ["line 1", "line 2", "line 3"]),
        ("a.csv", ["row 1", "row 2", "row 3"]),
        ("a.parquet", ["row 1", "row 2", "row 3"]),
        ("a.txt", ["line 1", "line 3", "line 5"]),
    ):
        told = asked(model, card, source=str(tmp_path / name))
        assert np.allclose(told.columns["probabilities"], shares, atol=1e-6), name
        assert told.columns["place"].tolist() == found
        assert told.columns["label"].tolist() == [("cat", "dog", "eel")[i] for i in shares.argmax(axis=1)]
    with pytest.raises(InputError, match="--length"):
        asked(model, card, source=str(tmp_path / "a.txt"), length=3)


def test_images_are_classified_by_a_pretrained_model(tmp_path: Path) -> None:
    model, card = made("pretrained-image-classifier", "vit", tmp_path, classes=3)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    like, seeded = torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0)
    shares = sample_chain(model, torch.from_numpy(pixels) / 255, like, seeded)[-1].softmax(dim=1)
    found = asked(model, card, source=str(tmp_path / "x.npz"))
    assert np.allclose(found.columns["probabilities"], shares.numpy(), atol=1e-6)


def transformers_logits(folder: Path, tokens: Tensor) -> Tensor:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens).logits
    return found


@pytest.mark.parametrize("tiny", ["llama", "gpt2"])
def test_a_converted_decoder_answers_before_any_adaptation(tiny: str, tmp_path: Path) -> None:
    """As the original does: the likeliest tokens (a temperature close to zero), and the bits of a text of more than
    one window. Would catch a first token that is scored, a window that forgets the token before it, and an adapter
    or bridge that moves an unadapted model."""
    save(TINY[tiny].made(), tmp_path / "original")
    convert(tmp_path / "original", 2, tmp_path / "converted")
    (tmp_path / "a.txt").write_text(TEXTS[2] + "\n")
    model, card = converted_model(tmp_path / "converted")
    tokens = torch.tensor([[int(word[1:]) for word in TEXTS[2].split()]])
    greedy = tokens
    for _ in range(5):
        likeliest = transformers_logits(tmp_path / "original", greedy)[:, -1].argmax(dim=1, keepdim=True)
        greedy = torch.cat([greedy, likeliest], dim=1)
    source = str(tmp_path / "a.txt")
    found = asked(model, card, source=source, length=5, temperature=1e-6)
    words = found.columns["continuation"].tolist()[0].split()
    assert words == [f"w{i}" for i in greedy[0, 8:].tolist()]
    logits = transformers_logits(tmp_path / "original", tokens)[:, :-1].log_softmax(dim=-1)
    bits = -logits.gather(2, tokens[:, 1:, None]).sum() / math.log(2)
    score = asked(model, card, source=source, score=True)
    assert score.columns["tokens"].tolist() == [7]
    assert score.columns["bits"][0] == pytest.approx(float(bits), rel=1e-4)
    short = card.model_copy(update={"model": card.model.model_copy(update={"sequence_length": 4})})
    halves = [tokens[:, 0:4], tokens[:, 3:7], tokens[:, 6:8]]
    by_window = sum(
        -transformers_logits(tmp_path / "original", part)[:, :-1].log_softmax(dim=-1)
        .gather(2, part[:, 1:, None]).sum() / math.log(2)
        for part in halves
    )  # fmt: skip
    cut = asked(model, short, source=source, score=True)
    assert cut.columns["tokens"].tolist() == [7]
    assert cut.columns["bits"][0] == pytest.approx(float(by_window), rel=1e-4)


def test_a_continuation_is_drawn_by_its_seed(tmp_path: Path) -> None:
    model, card = made("pretrained-decoder", "llama", tmp_path, sequence_length=6)
    (tmp_path / "a.txt").write_text("w5 w6\n")
    texts = [
        asked(model, card, source=str(tmp_path / "a.txt"), length=9, samples=2, seed=seed).columns[
            "continuation"
        ]
        for seed in (0, 0, 1)
    ]
    assert texts[0].tolist() == texts[1].tolist()
    assert texts[0].tolist() != texts[2].tolist()
    assert len(texts[0][0].split()) == 9
    (tmp_path / "one.txt").write_text("w5\n")
    with pytest.raises(InputError, match="no text to be scored"):
        asked(model, card, source=str(tmp_path / "one.txt"), score=True)


@pytest.mark.parametrize(
    "tiny", ["gpt2", "llama", "llama-tied", "llama-3", "qwen2", "qwen3", "mistral", "gemma", "gemma3"]
)
@torch.no_grad()
def test_kept_keys_and_values_change_no_continuation(tiny: str, tmp_path: Path) -> None:
    """Oracle: the whole text at once, as in training. It is longer than windows; one step is of three tokens. Would
    catch rotations, windows, positions or masks of new tokens that begin at zero, blocks that share a layer's keys,
    and a cache that is never used."""
    model, _ = made("pretrained-decoder", tiny, tmp_path, sequence_length=17, lora_rank=2)
    assert isinstance(model, PretrainedDecoder)
    tokens = torch.randint(1, 61, (2, 17), generator=torch.Generator().manual_seed(0))
    wanted = model.predict(1, torch.zeros(2, 0), torch.ones(2), model.context(1, tokens))
    seen: list[int] = []
    model.block(1).layers[0].register_forward_hook(lambda *args: seen.append(args[1][0].shape[1]))
    generator, cache = torch.Generator(), model.new_cache()
    for length in (4, 5, 6, 9, *range(10, 17)):
        found = model.next_logits(tokens[:, :length], generator, cache)
        torch.testing.assert_close(found, wanted[:, length], rtol=1e-4, atol=1e-4)
    assert seen == [4, 1, 1, 3, *[1] * 7]


def test_one_that_denoises_continues_by_its_chain(tmp_path: Path) -> None:
    """The next token's place is predicted from those before it; would catch an answer that depends on what is put
    there meanwhile."""
    model, _ = made("pretrained-decoder", "llama", tmp_path, sequence_length=8, objective="denoise")
    assert isinstance(model, PretrainedDecoder)
    tokens = torch.randint(1, 61, (2, 5), generator=torch.Generator().manual_seed(0))
    found = model.next_logits(tokens, torch.Generator().manual_seed(0))
    for other in (1, 40):
        more = torch.cat([tokens, torch.full((2, 1), other)], dim=1)
        wanted = sample_chain(model, more, more, torch.Generator().manual_seed(0))[-1][:, -1]
        assert torch.allclose(found, wanted, atol=1e-5)
    assert go_on(model, tokens, 3, torch.Generator().manual_seed(0)).shape == (2, 8)


@pytest.mark.slow
def test_the_command_takes_a_converted_folder_or_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exported model needs the model that it was adapted from; a converted encoder has no classes."""
    model, card = made("pretrained-text-classifier", "bert", tmp_path / "text", sequence_length=6, classes=3)
    save_model(split(model), card, tmp_path / "acme")
    (tmp_path / "a.txt").write_text("w5 w6 w7\n")
    monkeypatch.delenv(places.VARIABLE)
    with pytest.raises(InputError, match="no converted model of this digest"):
        load_model(tmp_path / "acme")
    given = ["--input", str(tmp_path / "a.txt"), "--json"]

    def run(*words: str) -> Done:
        return run_command(["predict", *words, *given], tmp_path, Machine())

    done = run("acme")
    assert done.exit_code == 2
    assert "no converted model of this digest" in done.stderr
    folder = str(tmp_path / "text" / "converted")
    done = run("acme", "--pretrained", folder)
    assert json.loads(done.stdout)["predictions"][0]["place"] == "line 1", done.stderr
    done = run(folder)
    assert done.exit_code == 2
    assert "knows no classes before it is adapted" in done.stderr
    save(TINY["llama"].made(), tmp_path / "original")
    convert(tmp_path / "original", 2, tmp_path / "converted")
    done = run("converted", "--length", "4")
    assert len(json.loads(done.stdout)["predictions"][0]["continuation"].split()) == 4, done.stderr
