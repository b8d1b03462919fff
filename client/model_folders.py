"""Where the final models that came to a company lie: HOME/models/RUN (see `delivery`). Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

MODELS = "models"
PUBLIC_FILE = "public.safetensors"
METRICS_FILE = "metrics.json"


def kept_folders(home: Path) -> list[Path]:
    """The folders of kept models, by name."""
    return sorted(path.parent for path in (home / MODELS).glob("[!.]*/model.json"))


def home_of(folder: Path) -> Path | None:
    """The company's home that a kept model's folder lies in; none where it lies elsewhere."""
    models = folder.resolve().parent
    inside = models.name == MODELS and (models.parent / "policy.toml").is_file()
    return models.parent if inside else None


def unmeasured(home: Path) -> bool:
    """Whether a model has no figures yet."""
    return any(not (folder / METRICS_FILE).is_file() for folder in kept_folders(home))
