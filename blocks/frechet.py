"""Frechet distance of two sets of images (Heusel et al. 2017, arXiv 1706.08500), the metric of an image generator.

FID compares features of a network trained on ImageNet. Here the features are those of a small classifier trained on
given public images, the same in every run, so that distances are comparable for one set of public images; they are
not comparable with published FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 32
_STEPS, _BATCH = 200, 128


@dataclass(frozen=True)
class FrechetDistance:
    """Distance on the penultimate features of a fixed classifier, scaled to unit deviation on its images.

    distance = classifier_on(images, labels)     # takes seconds
    distance(generated, heldout)                 # 0 for identical sets
    """

    features: nn.Module

    def __call__(self, images: Tensor, reference: Tensor) -> float:
        """Both (N, C, S, S), clamped to [0, 1]; N well above FEATURES each."""
        return frechet_distance(self.features(images.clamp(0, 1)), self.features(reference.clamp(0, 1)))


@lru_cache(maxsize=4)
def classifier_on(images: Tensor, labels: Tensor) -> FrechetDistance:
    """Train the classifier: images (N, C, S, S) in [0, 1], labels (N,). Cached for the same two tensors."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(images.shape[1], 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, FEATURES),
        )  # fmt: skip
        head = nn.Linear(FEATURES, int(labels.max()) + 1)
        net = nn.Sequential(body, nn.ReLU(), head)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        for _ in range(_STEPS):
            index = torch.randint(len(labels), (_BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
    body.append(_Scale(body(images).detach().std(dim=0).clamp_min(1e-6)))
    return FrechetDistance(body.requires_grad_(False).eval())


class _Scale(nn.Module):
    def __init__(self, deviation: Tensor) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x / self.deviation


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two samples (N, d) and (M, d)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # S_a S_b has the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)
