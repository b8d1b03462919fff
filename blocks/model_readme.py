"""README.md of a model that is handed back: what was trained, under which guarantee, and how it is used."""

from __future__ import annotations

import json

from .model_file import ModelCard
from .pretrained.card import ConvertedCard
from .pretrained.denoiser import PretrainedDenoiser
from .pretrained.lora import LoRALinear
from .pretrained.settings import PretrainedSettings

_TRAINED = {"block": "all weights of the blocks", "bias": "biases and norms"}


def model_readme(
    model: PretrainedDenoiser, card: ConvertedCard, about: ModelCard, form: str, as_class: bool
) -> str:
    """`as_class`: the head is that of the class of transformers that the model is written as."""
    settings = model.settings
    quality = (
        "not measured" if about.quality is None else f"{about.metric} {about.quality:.4g} on public data"
    )
    rows = {
        "Run": f"{about.run}, round {about.round} of {about.rounds}",
        "Guarantee": about.guarantee,
        "Trained": f"{_trained(model)}; {card.blocks} blocks of {card.per_block} layers, "
        f"objective {settings.objective}",
        "Quality": quality,
        "Plan": f"`{about.plan}` (SHA-256)",
        "Model": f"`{about.digest}` (SHA-256 of what trained)",
        "Adapted from": f"{card.name}, {card.model_class}, {card.dtype}: `{card.source}` (SHA-256 of its files)",
        "Converted model": f"`{settings.pretrained}` (SHA-256)",
        "Made with": f"fedblocks {about.version}",
    }
    if about.labels is not None:
        rows["Classes"] = ", ".join(about.labels)
    library = "peft" if form == "adapter" else "transformers"
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    notes = "\n\n".join(_notes(settings, card))
    code = "\n".join(_code(model, card, form, as_class))
    return (
        f"---\nlibrary_name: {library}\ntags:\n- fedblocks\n---\n# {_cell(about.run)}\n\n"
        f"| | |\n|---|---|\n{table}\n\n{notes}{chr(10) * 2 if notes else ''}## Use\n\n"
        f"```python\n{code}\n```\n"
    )


def _trained(model: PretrainedDenoiser) -> str:
    settings = model.settings
    if settings.trains != "lora":
        return _TRAINED[settings.trains]
    maps = {
        name.partition(".")[2]
        for name, module in model.block(0).layers.named_modules()
        if isinstance(module, LoRALinear)
    }
    return (
        f"low-rank adapters of rank {settings.lora_rank}, alpha {settings.lora_alpha:g}, "
        f"beside {', '.join(sorted(maps))}"
    )


def _notes(settings: PretrainedSettings, card: ConvertedCard) -> list[str]:
    found = []
    if settings.objective == "denoise":
        found.append(
            "`fedblocks predict` denoises the answer block by block. The code below reads it in one pass from the "
            "last block, so its answers are others."
        )
    if card.dtype != "float32":
        found.append(f"What was trained in float32 is rounded to {card.dtype}.")
    return found


def _code(model: PretrainedDenoiser, card: ConvertedCard, form: str, as_class: bool) -> list[str]:
    """To be run in the folder of the file."""
    if card.kind == "decoder":
        return _decoder(card, form)
    labels = "images" if card.kind == "vision" else "texts"
    start = ["import transformers"]
    if form == "adapter":
        start.append("from peft import PeftModel")
    if as_class:
        return [
            *start,
            "import torch",
            f"model = transformers.{model_class(card)}.from_pretrained('.')",
            *_images(card),
            "print(model(pixel_values=images).logits.softmax(dim=1))",
        ]
    first = getattr(model, "pooling", None) == "first"
    hidden = "hidden[:, 0]" if first else "(hidden * mask).sum(dim=1) / mask.sum(dim=1)"
    if card.kind == "vision":
        hidden = "hidden[:, 0]" if first else "hidden.mean(dim=1)"
        given, read = ["import torch", *_images(card)], "body(pixel_values=images).last_hidden_state"
    else:
        length = getattr(model.settings, "sequence_length")  # noqa: B009
        where = "." if form == "checkpoint" else "ORIGINAL"
        cut = f"truncation=True, max_length={length}, padding=True, return_tensors='pt'"
        given = [
            f"tokenizer = transformers.AutoTokenizer.from_pretrained('{where}')",
            f"texts = tokenizer(['a text'], {cut})",
        ]
        read = "body(**texts).last_hidden_state"
    mask = [] if first or labels == "images" else ["mask = texts['attention_mask'][:, :, None]"]
    normed = "norm(pooled, pooled.shape[-1:], head['norm.weight'], head['norm.bias'])"
    norm = "norm.weight" in model.block(len(model.blocks) - 1).interface.state_dict()
    return [
        *start,
        "from safetensors.torch import load_file",
        "from torch.nn.functional import layer_norm as norm, linear",
        *_body(card, form),
        *given,
        f"head, hidden = load_file('head.safetensors'), {read}",
        *mask,
        f"pooled = {hidden}",
        f"logits = linear({normed if norm else 'pooled'}, head['head.weight'], head['head.bias'])",
        "print(logits.softmax(dim=1))",
    ]


def model_class(card: ConvertedCard) -> str:
    """The class of transformers that a vision transformer with its head is written as."""
    from .pretrained.architectures import architecture

    name = architecture(card.architecture).image_classifier
    assert name is not None
    return name


def _decoder(card: ConvertedCard, form: str) -> list[str]:
    where = "." if form == "checkpoint" else "ORIGINAL"
    kind = "AutoModelForCausalLM" if form == "checkpoint" else card.model_class
    found = ["import transformers", f"model = transformers.{kind}.from_pretrained('{where}')"]
    if form == "adapter":
        found += ["from peft import PeftModel", "model = PeftModel.from_pretrained(model, '.')"]
    return [
        *found,
        f"tokenizer = transformers.AutoTokenizer.from_pretrained('{where}')",
        "tokens = tokenizer(['a text'], return_tensors='pt')['input_ids']",
        "print(tokenizer.decode(model.generate(input_ids=tokens, max_new_tokens=20)[0]))",
    ]


def _body(card: ConvertedCard, form: str) -> list[str]:
    if form == "checkpoint":
        return ["body = transformers.AutoModel.from_pretrained('.')"]
    return [
        f"base = transformers.{card.model_class}.from_pretrained('ORIGINAL')  # the checkpoint adapted from",
        "body = PeftModel.from_pretrained(base, '.').get_base_model().base_model",
    ]


def _images(card: ConvertedCard) -> list[str]:
    shape = f"1, {card.channels}, {card.image_size}, {card.image_size}"
    found = [f"images = torch.rand({shape})  # yours, from 0 to 1"]
    if card.mean:
        mean, std = (json.dumps([[[value]] for value in values]) for values in (card.mean, card.std))
        found.append(f"images = (images - torch.tensor({mean})) / torch.tensor({std})")
    return found


def _cell(value: str) -> str:
    """On one line, with nothing that ends a cell or begins HTML."""
    flat = " ".join(value.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
