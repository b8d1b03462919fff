"""What a table's rows are otherwise classified with: an FT-Transformer trained end to end, and gradient boosting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks import Schedule
from ...blocks.examples import Examples
from ...blocks.families.tabular import Columns, TabularSettings
from ...blocks.training import optimizer_of
from ...blocks.transformer import Layer, Shape


class FTTransformer(nn.Module):
    """FT-Transformer (Gorishniy et al. 2021, section 3.3): columns as tokens and a class token before them.

    Rows (N, columns) -> logits (N, classes).
    """

    def __init__(self, model: TabularSettings, layers: int) -> None:
        super().__init__()
        d = model.hidden_size
        shape = Shape(hidden_size=d, heads=model.heads, mlp_ratio=model.mlp_ratio)
        self.columns = Columns(model.numeric, model.categories, d)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, d))
        self.layers = nn.ModuleList(Layer(shape, modulated=False) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, model.classes or 1)

    def forward(self, rows: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(rows), -1, -1), self.columns(rows)], dim=1)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer.clean(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def train_classifier(
    model: FTTransformer, examples: Examples, schedule: Schedule, generator: torch.Generator
) -> None:
    """Cross-entropy, by the optimiser and the steps that a block has."""
    optimizer, rate = optimizer_of(model.parameters(), schedule)
    for _ in range(schedule.steps):
        rows = torch.randint(len(examples), (schedule.batch_size,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(examples.inputs[rows]), examples.targets[rows]).backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def accuracy(model: FTTransformer, examples: Examples) -> float:
    return float((model(examples.inputs).argmax(dim=1) == examples.targets).float().mean())


def boosted_accuracy(train: Examples, test: Examples, seed: int) -> float:
    """scikit-learn's histogram gradient boosting as it comes."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(train.inputs.numpy(), train.targets.numpy())
    return float(model.score(test.inputs.numpy(), test.targets.numpy()))
