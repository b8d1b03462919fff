"""Rows of a table as DiffusionBlocks: a classifier, or a regressor, over columns as tokens.

The tokens are those of FT-Transformer (Gorishniy et al. 2021, arXiv 2106.11959, section 3.3): a number x of column j
becomes x w_j + b_j, a category its own vector. The row is the clean stream. The target is denoised as in the image
classifier: a class by its embedding, a number as it is, scaled to [-1, 1] (see `client/data/tables/load.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..categorical_denoiser import EmbeddedDenoiser
from ..denoiser import Denoiser, Features, GaussianDenoiser, Metric
from ..noise import Partition
from ..patches import placed, positions
from ..preconditioning import Preconditioning
from ..settings import DataKind, TransformerSettings, require
from ..taps import ContinuousTap, Tap
from ..transformer import Block, NoiseEmbedding, Shape
from . import Family


class TabularSettings(TransformerSettings):
    """Rows of `numeric` real columns and one column for each entry of `categories`, how many values it takes.

    `classes`: how many classes the target has; none: it is a number.
    """

    connector = "tables"
    label_side = "targets"

    family: Literal["tabular"] = "tabular"
    numeric: int = Field(8, ge=0, le=4096)
    categories: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field((), max_length=4096)
    classes: int | None = Field(2, ge=2)

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        require(self.numeric + len(self.categories) > 0, "numeric", self.numeric, "a row must have a column")
        fits = self.classes is None or self.classes <= self.hidden_size
        require(fits, "classes", self.classes, "must not exceed hidden_size")
        return self

    @property
    def kind(self) -> DataKind:
        row = (self.numeric + len(self.categories),)
        return DataKind(inputs=row, categories=self.categories, targets=(), target_classes=self.classes)

    @property
    def data_words(self) -> str:
        what = "a number each" if self.classes is None else f"in {self.classes} classes"
        return f"rows of {self.numeric} numbers and {len(self.categories)} categories, {what}"

    @property
    def unit_words(self) -> str:
        return "one row of a table with its label"


class Columns(nn.Module):
    """Rows (N, numeric + categorical) -> tokens (N, T, D): first the numbers, then the codes of categories."""

    def __init__(self, numeric: int, categories: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.numeric = numeric
        self.scale, self.place = (
            positions(max(numeric, 1), hidden_size),
            positions(max(numeric, 1), hidden_size),
        )
        nn.init.normal_(self.scale.weight, std=1 / math.sqrt(hidden_size))
        # One table for all categorical columns, each with rows of its own.
        self.offsets = list(accumulate(categories, initial=0))[:-1]
        self.value = positions(max(sum(categories), 1), hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        numbers, codes = rows[:, : self.numeric], rows[:, self.numeric :].long()
        tokens = []
        if self.numeric:
            tokens.append(numbers[..., None] * placed(self.scale, rows) + placed(self.place, rows))
        if self.offsets:
            tokens.append(self.value(codes + torch.tensor(self.offsets, device=codes.device)))
        return torch.cat(tokens, dim=1)


def column_tap(part: Block, noisy_basis: Tensor) -> tuple[Tap, ...]:
    """Number x of column j enters the first layer as x w_j + b_j: a part of one value."""
    columns = part.interface["columns"]
    assert isinstance(columns, Columns)
    if not columns.numeric:
        return ()
    width = columns.scale.embedding_dim
    return (
        ContinuousTap(
            field="numbers",
            weight="layers.0.qkv.weight",
            rows=slice(width, 3 * width),
            embedding=columns.scale.weight.detach()[..., None],  # (T, D, 1)
            offset=columns.place.weight.detach(),
            norm="layer",
            cut=lambda rows: rows[..., None],
            join=lambda parts: parts[..., 0],
            others=len(columns.offsets),
            shown=part.directions(1),
            noisy_basis=noisy_basis,
        ),
    )


def interface(numeric: int, categories: Sequence[int], hidden_size: int, outputs: int) -> nn.ModuleDict:
    """What a block owns besides its layers."""
    return nn.ModuleDict(
        {
            "columns": Columns(numeric, categories, hidden_size),
            "noise": NoiseEmbedding(hidden_size),
            "norm": nn.LayerNorm(hidden_size),
            "head": nn.Linear(hidden_size, outputs),
        }
    )


class TabularClassifier(EmbeddedDenoiser):
    """Rows (N, T), classes (N,) in [0, classes)."""

    metric: ClassVar[Metric] = Metric("accuracy", True, "share")

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        numeric: int = 8,
        categories: Sequence[int] = (),
        classes: int = 2,
        hidden_size: int = 32,
        layers: int = 3,
        heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        table = torch.linalg.qr(torch.randn(hidden_size, classes))[0].T.contiguous()
        super().__init__(partition, preconditioning or Preconditioning(), features, table)
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)
        each = layers // partition.blocks
        self.blocks = nn.ModuleList(
            Block(interface(numeric, categories, hidden_size, classes), each, shape)
            for _ in range(partition.blocks)
        )

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        return self.own(block, "columns", inputs)

    def taps(self, block: int) -> tuple[Tap, ...]:
        return () if block and self.features == "prefix" else column_tap(self.part(block), self.table.T)

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        evidence = self.evidence(z, level)  # (N, classes)
        # As small as the embedded columns are at first, as in the image classifier.
        token = self.posterior_mean(evidence)[:, None] / math.sqrt(self.table.shape[1])  # (N, 1, D)
        _, out = self.part(block)(context, token, self.condition(block, level))
        return self.own(block, "head", self.own(block, "norm", out[:, 0])) + evidence

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction.argmax(dim=1) == targets).float()


class TabularRegressor(GaussianDenoiser):
    """Rows (N, T), numbers (N,), most of them in [-1, 1]; the error is in shares of half that range."""

    metric: ClassVar[Metric] = Metric("mean_absolute_error", False, "number")

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        features: Features = "raw",
        numeric: int = 8,
        categories: Sequence[int] = (),
        classes: None = None,
        hidden_size: int = 32,
        layers: int = 3,
        heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(partition, preconditioning or Preconditioning(), features)
        shape = Shape(hidden_size=hidden_size, heads=heads, mlp_ratio=mlp_ratio)
        each = layers // partition.blocks
        blocks = []
        for _ in range(partition.blocks):
            own = interface(numeric, categories, hidden_size, 1)
            own["number"] = nn.Linear(1, hidden_size)
            blocks.append(Block(own, each, shape))
        self.blocks = nn.ModuleList(blocks)

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        return self.own(block, "columns", inputs)

    def clean(self, targets: Tensor) -> Tensor:
        return targets

    def taps(self, block: int) -> tuple[Tap, ...]:
        if block and self.features == "prefix":
            return ()
        number = self.part(block).interface["number"]
        assert isinstance(number, nn.Linear)
        return column_tap(self.part(block), torch.stack([number.weight[:, 0], number.bias], dim=1).detach())

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        token = self.own(block, "number", self.scaled(z, level)[:, None])[:, None]  # (N, 1, D)
        _, out = self.part(block)(context, token, self.condition(block, level))
        raw = self.own(block, "head", self.own(block, "norm", out[:, 0]))[:, 0]
        return self.denoised(z, level, raw)

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction - targets).square()

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (prediction - targets).abs()

    def prior(self, shape: torch.Size, level: float, generator: torch.Generator) -> Tensor:
        """z where it tells nothing: its mean, rather than a draw, whose noise would only blur the answer."""
        return torch.zeros(shape)


def _network(model: TransformerSettings) -> type[Denoiser]:
    assert isinstance(model, TabularSettings)
    return TabularRegressor if model.classes is None else TabularClassifier


FAMILY = Family(
    title="classifier or regressor of rows (tabular)",
    settings=TabularSettings,
    network=_network,
    small={"numeric": 3, "categories": (3, 2), "classes": 3},
)
