"""The registry of model families: found by their files, complete, and imported only when one is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedblocks.blocks import build_model, families
from fedblocks.blocks.families import Family, family, family_names
from fedblocks.blocks.settings import TransformerSettings
from fedblocks.client.data import CONNECTORS
from fedblocks.errors import InputError
from fedblocks.experiments.presets import load_settings
from fedblocks.settings import NoiseSettings


def test_a_file_in_the_folder_is_a_family() -> None:
    files = {path.stem for path in Path(families.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(family_names()) == {name.replace("_", "-") for name in files}


@pytest.mark.parametrize("name", family_names())
def test_every_family_is_complete(name: str) -> None:
    """Would catch a family without data, words or a small model, on which the checks of clipping would fail late."""
    found = family(name)
    settings = found.small_settings()
    assert settings.connector in CONNECTORS
    assert settings.label_side is None or getattr(settings.kind, settings.label_side[:-1] + "_classes")
    assert found.title
    assert settings.data_words
    assert found.network_of(settings).metric.words
    assert isinstance(build_model(settings, NoiseSettings()), found.network_of(settings))


UNDER_ANOTHER_NAME = """
from typing import Literal
from fedblocks.blocks.denoiser import Denoiser
from fedblocks.blocks.families import Family
from fedblocks.blocks.settings import ImageSettings

class Other(ImageSettings):
    family: Literal["other"] = "other"

FAMILY = Family(title="t", settings=Other, network=Denoiser)
"""


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("", "must define FAMILY"),
        (UNDER_ANOTHER_NAME, "is 'other', expected 'half-made'"),
    ],
)
def test_an_incomplete_file_is_named(
    body: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a file that is passed over, or taken under another family's name."""
    (tmp_path / "half_made.py").write_text(body)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fedblocks.blocks.families.half_made", raising=False)
    assert "half-made" in family_names()
    with pytest.raises(TypeError, match=f"half_made.*{complaint}"):
        family("half-made")


def test_an_unknown_family_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError) as caught:
        load_settings("digits", ["model.family=perceptron"])
    expected = f"model.family='perceptron': expected one of {', '.join(family_names())}"
    assert str(caught.value) == expected
    with pytest.raises(LookupError, match="perceptron"):
        family("perceptron")


def test_settings_are_imported_without_torch() -> None:
    """A family's file holds its network: importing the settings may import none, or every command waits for torch."""
    code = "import sys, fedblocks.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_field_family_is_no_family_of_its_own() -> None:
    """The base class is never a model: settings without a family are refused by name."""
    assert TransformerSettings not in {family(name).settings for name in family_names()}
    assert all(isinstance(family(name), Family) for name in family_names())


SHARED = ["hidden_size", "layers", "blocks", "heads", "mlp_ratio", "features"]
IMAGE = ["image_size", "channels", "patch_size", "classes", "family"]
TEXT = ["sequence_length", "tokenizer", "vocabulary", "family"]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("vit", [*IMAGE, "initializer_range"]),
        ("dit", IMAGE),
        ("ar-lm", TEXT),
        ("masked-lm", TEXT),
        ("forecaster", ["family", "context_length", "horizon", "channels", "patch_size"]),
        ("tabular", ["family", "numeric", "categories", "classes"]),
    ],
)
def test_the_order_of_fields_is_that_of_digests(name: str, own: list[str]) -> None:
    """Would catch a field moved: plans are digested, and simulations seeded, by the text of their settings."""
    assert list(family(name).settings.model_fields) == [*SHARED, *own]
