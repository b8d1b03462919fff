"""Predictions of every family, from inputs without labels, against the model asked directly."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import Done, Machine, run_command
from torch import Tensor

from fedblocks.blocks import Denoiser, ModelCard, build_model, digest, metric_of, sample_chain, split
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family
from fedblocks.blocks.families.ar_lm import ARLanguageModel, generate
from fedblocks.blocks.families.forecaster import Forecaster, forecast
from fedblocks.blocks.masked import MaskedDenoiser
from fedblocks.blocks.model_file import load_model, save_model
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.client.data.findings import Findings
from fedblocks.client.prediction import Predictions, Wanted, predict
from fedblocks.client.prediction.text import going_on
from fedblocks.errors import InputError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import simulate
from fedblocks.server.models import export
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings

NOISE = NoiseSettings(P_mean=1.0)


def made(name: str, contract: dict[str, Any] | None = None, **settings: Any) -> tuple[Denoiser, ModelCard]:
    """A small model of random weights and its card."""
    small = family(name).small_settings()
    chosen = type(small).model_validate(small.model_dump() | settings)
    torch.manual_seed(1)
    model = build_model(chosen, NOISE).eval()
    for parameter in model.parameters():  # readouts that start at zero would answer the same to everything
        parameter.data += 0.2 * torch.randn_like(parameter)
    state = split(model)
    labels = (contract or {}).get("labels")
    card = ModelCard(
        version="0", run="r", round=1, rounds=1, plan="", guarantee="", model=chosen,
        noise=NOISE.model_copy(update={"edges": model.partition.edges}), metric=metric_of(chosen).name,
        digest=digest(state.shared, *state.blocks).hex(), contract=contract, labels=labels,
    )  # fmt: skip
    return model, card


def asked(model: Denoiser, card: ModelCard, **wanted: Any) -> Predictions:
    return predict(model, card, Wanted(**wanted), Findings("input"))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Images


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)


def test_images_are_classified_the_same_from_every_kind_of_file(tmp_path: Path, pixels: np.ndarray) -> None:
    """An .npz without labels, files in a folder, in class folders, one file, and tables of pixels and of paths;
    would catch a prediction beside another image's name."""
    names = ["cat", "dog", "eel", "fox", "gnu", "hen", "owl"]
    model, card = made("vit", {"kind": "images", "labels": names}, classes=7)
    logits = sample_chain(model, torch.from_numpy(pixels) / 255, torch.zeros(1, dtype=torch.long), seeded())[
        -1
    ]
    shares = logits.softmax(dim=1).numpy()
    np.savez(tmp_path / "x.npz", images=pixels)
    for i, picture in enumerate(pixels[:, 0]):
        for folder in ("flat", f"classes/{names[i % 2]}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
    rows = [[f"p{i}" for i in range(36)], *pixels.reshape(5, 36).tolist()]
    (tmp_path / "pixels.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    (tmp_path / "paths.csv").write_text("file\n" + "\n".join(f"flat/{i}.png" for i in range(5)))
    by_path = {"kind": "images", "path": "file"}
    for source, order, contract in (
        ("x.npz", [0, 1, 2, 3, 4], None),
        ("flat", [0, 1, 2, 3, 4], None),
        ("classes", [0, 2, 4, 1, 3], None),
        ("flat/3.png", [3], None),
        ("pixels.csv", [0, 1, 2, 3, 4], None),
        ("paths.csv", [0, 1, 2, 3, 4], by_path),
    ):
        found = asked(model, card, source=str(tmp_path / source), contract=contract)
        assert np.allclose(found.columns["probabilities"], shares[order], atol=1e-6), source
        assert found.columns["label"].tolist() == [names[i] for i in shares[order].argmax(axis=1)]
        assert np.allclose(found.columns["probability"], shares[order].max(axis=1), atol=1e-6)
        if source.startswith(("flat", "classes")):
            assert [Path(str(name)).stem for name in found.columns["image"]] == list(map(str, order))
    record = next(iter(asked(model, card, source=str(tmp_path / "x.npz")).records()))
    assert list(record["probabilities"]) == names
    assert math.isclose(sum(record["probabilities"].values()), 1, abs_tol=1e-5)


def test_a_file_that_is_skipped_takes_no_others_name(tmp_path: Path, pixels: np.ndarray) -> None:
    model, card = made("vit", classes=7)
    for i in range(3):
        Image.fromarray(pixels[i, 0]).save(tmp_path / f"{i}.png")
    whole = asked(model, card, source=str(tmp_path)).columns
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"'1\.png' is not a readable image"):
        asked(model, card, source=str(tmp_path))
    found = asked(model, card, source=str(tmp_path), contract={"kind": "images", "broken": "skip"}).columns
    assert found["image"].tolist() == ["0.png", "2.png"]
    assert np.allclose(found["probabilities"], whole["probabilities"][[0, 2]], atol=1e-6)


def test_images_of_a_class_are_drawn(tmp_path: Path) -> None:
    """As the sampler draws them, by the class's name; would catch labels and images in different orders."""
    model, card = made("dit", {"kind": "images", "labels": list("abcdefg")}, classes=7)
    found = asked(model, card, labels=("c", "a"), samples=3)
    labels = torch.tensor([2, 2, 2, 0, 0, 0])
    expected = sample_chain(model, labels, torch.zeros(1, 1, 6, 6), seeded())[-1].clamp(0, 1)
    assert np.array_equal(found.columns["image"], expected.numpy())
    assert found.columns["label"].tolist() == list("cccaaa")
    assert found.columns["sample"].tolist() == [1, 2, 3, 1, 2, 3]
    assert len(asked(model, card)) == 7 * 4
    with pytest.raises(InputError, match="expected one of a, b, c"):
        asked(model, card, labels=("z",))
    with pytest.raises(InputError, match="name classes by --label"):
        asked(model, card, source=str(tmp_path))


# Rows

TABLE = {
    "kind": "table", "label": "price", "range": [100.0, 300.0], "numeric": {"size": [0.0, 10.0], "age": [0.0, 50.0]},
    "categories": {"town": ["x", "y", "z"]}, "missing": "drop",
}  # fmt: skip
ROWS = "age,town,size,note\n5,x,1,\n10,y,2,\n,z,3,\n20,q,4,\n50,z,10,\n"


def test_numbers_come_in_the_labels_own_unit_beside_their_row(tmp_path: Path) -> None:
    """Without the label's column, columns in another order; rows that the contract drops keep their numbers free."""
    (tmp_path / "x.csv").write_text(ROWS)
    model, card = made("tabular", TABLE, numeric=2, categories=(3,), classes=None)
    found = asked(model, card, source=str(tmp_path / "x.csv")).columns
    inputs = torch.tensor([[-0.8, -0.8, 0.0], [-0.6, -0.6, 1.0], [1.0, 1.0, 2.0]])
    answers = sample_chain(model, inputs, torch.zeros(1), seeded())[-1].double().numpy()
    assert found["row"].tolist() == [1, 2, 5]
    assert np.allclose(found["price"], 200 + 100 * answers, atol=1e-3)
    refuse = TABLE | {"missing": "refuse"}
    with pytest.raises(InputError, match="row 3 of column 'age'"):
        asked(model, card, source=str(tmp_path / "x.csv"), contract=refuse)


def test_rows_are_classified(tmp_path: Path) -> None:
    contract = {k: v for k, v in TABLE.items() if k != "range"} | {
        "labels": ["low", "high"],
        "missing": "mark",
    }
    (tmp_path / "x.csv").write_text(ROWS)
    model, card = made("tabular", contract, numeric=2, categories=(4, 2, 2), classes=2)
    found = asked(model, card, source=str(tmp_path / "x.csv"))
    assert found.columns["row"].tolist() == [1, 2, 3, 4, 5]
    inputs = torch.tensor([[-0.4, 0.0, 2.0, 0.0, 1.0]])
    shares = sample_chain(model, inputs, torch.zeros(1, dtype=torch.long), seeded())[-1].softmax(1).numpy()
    assert np.allclose(found.columns["probabilities"][2], shares[0], atol=1e-6)
    assert set(found.flat()) >= {"row", "label", "probability", "probabilities_low", "probabilities_high"}
    with pytest.raises(InputError, match="rows need a contract"):
        asked(model, card.model_copy(update={"contract": None}), source=str(tmp_path / "x.csv"))
    (tmp_path / "y.csv").write_text("age,size\n5,1\n")
    with pytest.raises(InputError, match="column 'town' is missing"):
        asked(model, card, source=str(tmp_path / "y.csv"))


# Series


def series_file(path: Path, values: np.ndarray) -> str:
    times = np.datetime64("2024-01-01T00") + np.arange(len(values)) * np.timedelta64(1, "h")
    lines = [f"{t},{','.join(map(str, row))}" for t, row in zip(times, values.tolist(), strict=True)]
    path.write_text("\n".join(["time,a,b", *lines]))
    return str(path)


def test_a_future_has_an_interval_in_the_series_own_unit(tmp_path: Path) -> None:
    """Against the forecast function, channel by channel; a constant series stays what it is, with no width."""
    values = np.random.default_rng(0).normal(50, 5, (20, 2)).round(3)
    values[:, 1] = 7.0
    source = series_file(tmp_path / "x.csv", values)
    model, card = made("forecaster")  # one channel, so each column is a series
    assert isinstance(model, Forecaster)
    found = asked(model, card, source=source, samples=40, interval=0.5).columns
    history = torch.from_numpy(values[None, None, -9:, 0])
    drawn = forecast(model, history, seeded(), samples=40)[0, :, 0].numpy()
    assert found["channel"].tolist() == ["a"] * 3 + ["b"] * 3
    assert found["step"].tolist() == [1, 2, 3] * 2
    assert set(found["after"].tolist()) == {"2024-01-01 19:00:00"}
    for name, expected in (
        ("mean", drawn.mean(axis=0)),
        ("median", np.median(drawn, axis=0)),
        ("low", np.quantile(drawn, 0.25, axis=0)),
        ("high", np.quantile(drawn, 0.75, axis=0)),
    ):
        assert np.allclose(found[name][:3], expected), name
        assert np.allclose(found[name][3:], 7.0)
    assert (found["low"][:3] < found["high"][:3]).all()


def test_a_series_that_does_not_reach_its_end_is_refused(tmp_path: Path) -> None:
    """Would catch a forecast of hours that are over, from what was before a gap."""
    model, card = made("forecaster", channels=2)
    values = np.random.default_rng(0).normal(50, 5, (20, 2))
    assert len(asked(model, card, source=series_file(tmp_path / "x.csv", values))) == 2 * 3
    gap = {"kind": "series", "missing": "gap"}
    values[15, 1] = np.nan
    (tmp_path / "y.csv").write_text(
        Path(series_file(tmp_path / "y.csv", values)).read_text().replace("nan", "")
    )
    with pytest.raises(
        InputError, match=r"the last 4 steps are without a gap, expected model\.context_length=9"
    ):
        asked(model, card, source=str(tmp_path / "y.csv"), contract=gap)
    text = (tmp_path / "x.csv").read_text() + "\n2024-01-01T20,,"
    (tmp_path / "z.csv").write_text(text)
    with pytest.raises(InputError, match="the last 0 steps"):
        asked(model, card, source=str(tmp_path / "z.csv"), contract=gap)


# Texts


def prompts_file(path: Path) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("def f(", "")) + '\n{"text": "x"}\n')
    return str(path)


@pytest.mark.parametrize("name", ["ar-lm", "recurrent-lm"])
def test_a_prompt_is_continued_as_the_model_generates(tmp_path: Path, name: str) -> None:
    more = {"layers": 4} if name == "recurrent-lm" else {}
    model, card = made(name, tokenizer="ascii", vocabulary=97, sequence_length=16, **more)
    assert isinstance(model, ARLanguageModel)
    path = tmp_path / "p.txt"
    path.write_text("def f(\n")
    found = asked(model, card, source=str(path), length=9, temperature=0.5, samples=2).columns
    from fedblocks.client.data.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.of("t", "ascii")
    prompt = torch.from_numpy(tokenizer.encode("def f(")).expand(2, -1)
    expected = generate(model, prompt, 9, seeded(), 0.5)[:, 6:]
    assert found["prompt"].tolist() == ["def f("] * 2
    assert found["continuation"].tolist() == [tokenizer.decode(row.numpy()) for row in expected]


def test_no_step_sees_more_than_the_model_was_trained_on() -> None:
    """Lengths over and below the window; would catch a continuation that loses or repeats tokens."""
    seen: list[int] = []

    def more(context: Tensor, count: int) -> Tensor:
        seen.append(context.shape[1] + count)
        last = int(context[0, -1]) if context.shape[1] else -1
        return torch.cat([context, torch.arange(last + 1, last + 1 + count)[None]], dim=1)

    for before in (0, 1, 5, 8, 30):
        for length in (1, 3, 8, 40):
            for window in (2, 8):
                found = going_on(more, torch.arange(before)[None], length, window)
                assert found.tolist() == [list(range(before + length))]
                assert max(seen) <= window
                seen.clear()


def test_a_masked_model_fills_what_comes_after_the_prompt(tmp_path: Path) -> None:
    """The prompt stays as it is, and every further token is drawn, none left masked."""
    model, card = made("masked-lm", tokenizer="ascii", vocabulary=97, sequence_length=12)
    assert isinstance(model, MaskedDenoiser)
    shown = torch.tensor([[1, 97, 2, 97, 97, 3]])
    filled = model.complete(shown, seeded())
    assert filled[shown != 97].tolist() == [1, 2, 3]
    assert (filled < 97).all()
    found = asked(model, card, source=prompts_file(tmp_path / "p.jsonl"), length=30).columns
    assert found["prompt"].tolist() == ["def f(", "", "x"]
    assert [len(str(text)) for text in found["continuation"]] == [30, 30, 30]
    with pytest.raises(InputError, match="--temperature"):
        asked(model, card, source=str(tmp_path / "p.jsonl"), temperature=0.5)


def test_a_texts_score_is_its_likelihood(tmp_path: Path) -> None:
    """Two whole windows against the metric that runs are judged by; a rest counts by its own length."""
    model, card = made("ar-lm", tokenizer="ascii", vocabulary=97, sequence_length=8)
    text = "abcdefgh12345678"
    (tmp_path / "t.txt").write_text(text + "\n")
    found = asked(model, card, source=str(tmp_path / "t.txt"), score=True).columns
    from fedblocks.client.data.text.tokenizer import Tokenizer

    tokens = torch.from_numpy(Tokenizer.of("t", "ascii").encode(text)).view(2, 8)
    assert found["bits_per_token"][0] == pytest.approx(
        model.chain_quality(tokens, tokens, seeded())[-1], rel=1e-5
    )
    (tmp_path / "t.txt").write_text(text + "xyz\n")
    longer = asked(model, card, source=str(tmp_path / "t.txt"), score=True).columns
    rest = torch.from_numpy(Tokenizer.of("t", "ascii").encode("xyz"))[None]
    added = 3 * model.chain_quality(rest, rest, seeded())[-1]
    assert longer["bits"][0] == pytest.approx(found["bits"][0] + added, rel=1e-5)
    assert longer["tokens"].tolist() == [19]
    masked, masked_card = made("masked-lm", tokenizer="ascii", vocabulary=97, sequence_length=8)
    bound = asked(masked, masked_card, source=str(tmp_path / "t.txt"), score=True).columns
    assert 0 < bound["bits_per_token"][0] < 50


# Requests and files


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("vit", {"length": 3}, "--length=3"),
        ("vit", {"samples": 3}, "--samples=3"),
        ("vit", {"labels": ("a",)}, "--label"),
        ("dit", {"score": True}, "--score"),
        ("ar-lm", {"interval": 0.5}, "--interval=0.5"),
        ("ar-lm", {"score": True, "length": 3}, "with --score"),
        ("forecaster", {"temperature": 1.0}, "--temperature"),
        ("tabular", {}, "--input=None: name a file"),
        ("vit", {"source": "x.npz", "contract": TABLE}, "another kind of data"),
        ("forecaster", {"source": "x.csv", "samples": 2}, "expected 10 or more"),
        ("forecaster", {"source": "x.csv", "interval": 1.0}, "between 0 and 1"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused_by_name(
    name: str, wanted: dict[str, Any], said: str
) -> None:
    """Would catch an option that is silently left out of account."""
    model, card = made(name)
    with pytest.raises(InputError) as refused:
        asked(model, card, **wanted)
    assert said in str(refused.value)


@pytest.fixture(scope="module")
def finished(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("prediction") / "run")
    simulate(run)
    return run


def command(*words: object, cwd: Path) -> Done:
    return run_command(list(map(str, words)), cwd, Machine())


def test_a_run_and_its_exported_model_predict_what_its_metrics_say(
    finished: RunFolder, tmp_path: Path
) -> None:
    """By command, on the public test set: the share of right answers is the accuracy of the run's last round."""
    public = Examples.load(finished.evaluation / "public.npz")
    np.savez(tmp_path / "x.npz", images=public.inputs.numpy())
    (tmp_path / "plain.toml").write_text('kind = "images"\n')
    export(finished, tmp_path / "acme")
    card = (tmp_path / "acme" / "model.json").read_text()
    # The set's contrast was matched when the run was prepared.
    (tmp_path / "acme" / "model.json").write_text(
        card.replace('"match_contrast": true', '"match_contrast": false')
    )
    done = command("predict", "acme", "--input", "x.npz", "--json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    right = [p["label"] == str(y) for p, y in zip(told["predictions"], public.targets.tolist(), strict=True)]
    assert sum(right) / len(right) == pytest.approx(finished.metrics()[4]["quality"]["public"][-1])
    assert (told["round"], told["kind"], told["count"]) == (4, "classes", len(public))
    for run_words in (("acme",), (finished.path,)):
        done = command("predict", *run_words, "--input", "x.npz", "--contract", "plain.toml", cwd=tmp_path)
        assert done.exit_code == 0, done.stderr
        assert len(list(csv.reader(io.StringIO(done.stdout)))) == len(public) + 1
    old = command("predict", finished.path, "--round", 0, "--input", "x.npz", "--json", cwd=tmp_path)
    assert json.loads(old.stdout)["round"] == 0


def test_files_hold_the_same_and_are_made_once(tmp_path: Path, pixels: np.ndarray) -> None:
    """CSV, JSON and .npz agree, for the owner alone; a file that is there, or a bad name, ends with 2."""
    model, card = made("vit", {"kind": "images", "labels": ["=1+1", *"bcdefg"]}, classes=7)
    save_model(split(model), card, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors")[1] == card
    np.savez(tmp_path / "x.npz", images=pixels)
    for kind in ("csv", "json", "npz"):
        done = command(
            "predict", "m.safetensors", "--input", "x.npz", "--to", f"y.{kind}", "--json", cwd=tmp_path
        )
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["file"] == f"y.{kind}"
        assert (tmp_path / f"y.{kind}").stat().st_mode & 0o777 == 0o600
    with np.load(tmp_path / "y.npz") as file:
        shares = file["probabilities"]
    records = json.loads((tmp_path / "y.json").read_text())["predictions"]
    assert np.allclose([list(each["probabilities"].values()) for each in records], shares)
    rows = list(csv.DictReader((tmp_path / "y.csv").open(encoding="utf-8")))
    assert np.allclose(
        [[float(v) for k, v in row.items() if k.startswith("probabilities")] for row in rows], shares
    )
    assert not any("=1+1" in cell for row in rows for cell in (*row, *row.values()))
    before = sorted(tmp_path.iterdir())
    for to, said in (("y.csv", "exists already"), ("y.xls", "ends in .csv"), ("no/y.csv", "no such folder")):
        done = command("predict", "m.safetensors", "--input", "x.npz", "--to", to, cwd=tmp_path)
        assert done.exit_code == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
