"""Gradient matching on networks that are not ours: what is plugged in has to work as it stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedblocks.threat_model.gradient_matching import Matching, match
from fedblocks.threat_model.module_problem import ModuleProblem
from fedblocks.threat_model.prior import GaussianPrior
from fedblocks.threat_model.releases import Release
from fedblocks.threat_model.scoring import closeness


class SmallConvolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, stride=2), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(72, 5),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


class SmallTransformer(nn.Module):
    """torch's own encoder, over rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.position = nn.Parameter(0.3 * torch.randn(8, 16))  # without it rows have no order
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images[:, 0]) + self.position
        out: Tensor = self.head(self.encoder(tokens).mean(1))
        return out


NETWORKS = {"convolutional": SmallConvolutional, "transformer": SmallTransformer}


def problem_of(name: str) -> tuple[ModuleProblem, Tensor, Tensor]:
    torch.manual_seed(0)
    problem = ModuleProblem(NETWORKS[name](), nn.functional.cross_entropy, shape=(1, 8, 8), classes=5)
    return problem, torch.rand(3, 1, 8, 8).double(), torch.tensor([3, 1, 4])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_and_jacobian_are_torchs(name: str) -> None:
    """Oracles: autograd on the module itself, and central differences."""
    problem, images, labels = problem_of(name)
    values = {"image": images, "label": labels}
    found = problem.gradient(values)
    for i in range(3):
        net = problem.module.requires_grad_(True)
        nn.functional.cross_entropy(net(images[i : i + 1]), labels[i : i + 1]).backward()
        own = torch.cat([p.grad.flatten() for _, p in sorted(net.named_parameters()) if p.grad is not None])
        torch.testing.assert_close(found[i], own)
        net.zero_grad()
        net.requires_grad_(False)
    direction = torch.randn(1, 8, 8).double()
    ahead, behind = (problem.gradient(values | {"image": images + s * 1e-6 * direction})[0] for s in (1, -1))
    along = direction.flatten() @ problem.jacobian(values, ("image",))[0].double()
    torch.testing.assert_close(along, (ahead - behind) / 2e-6, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "matching"),
    [
        ("convolutional", Matching(iterations=400)),
        ("transformer", Matching(iterations=400)),
        ("convolutional", Matching(optimizer="adam", distance="cosine", iterations=300, attempts=1)),
    ],
)
def test_an_image_and_its_label_come_back(name: str, matching: Matching) -> None:
    problem, images, labels = problem_of(name)
    g = problem.gradient({"image": images[:1], "label": labels[:1]})[0]
    prior = GaussianPrior.fit(torch.rand(30, 1, 8, 8), (0.0, 1.0))
    found = match(problem, Release(g, 1, 1, 0.0), prior, matching, torch.Generator().manual_seed(0))
    before = closeness(problem.fields[0], prior.mode[None], images[:1])[0]
    after = closeness(problem.fields[0], found.values["image"], images[:1])[0]
    assert int(found.values["label"][0]) == 3
    assert after > before + (20 if matching.optimizer == "lbfgs" else 5)
    assert after > 40 or matching.optimizer == "adam"


def test_labels_of_a_sum_are_counted() -> None:
    """Would catch labels taken as known, and one that is counted twice."""
    problem, images, labels = problem_of("convolutional")
    g = problem.gradient({"image": images, "label": labels}).sum(0)
    prior = GaussianPrior.fit(torch.rand(30, 1, 8, 8), (0.0, 1.0))
    found = match(
        problem, Release(g, 3, 1, 0.0), prior, Matching(iterations=20, attempts=1), torch.Generator()
    )
    assert sorted(found.values["label"].tolist()) == [1, 3, 4]
