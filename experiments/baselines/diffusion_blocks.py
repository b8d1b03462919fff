"""DiffusionBlocks for classification as published (arXiv 2506.14202, section 4.1), its choices kept.

What differs from `blocks`: equi-probability noise around P_mean=-1.2; the noisy label embedding itself is the
class token, among patches that see it; the readout is that of c_skip z + c_out F; the loss is weighted by
1/c_out^2; patch, position, label and noise embeddings, norm and head are shared and trained by every block's
loss; label embeddings are of unit norm in training and taken as they are at inference; the last step runs at
the lowest noise. The weight multiplies each example's own loss, as the paper has it.
"""

from __future__ import annotations

from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks.noise import LogNormalNoise, Partition, Seeded
from ...blocks.patches import patches_of, placed, positions
from ...blocks.preconditioning import Preconditioning
from ...blocks.transformer import Layer, NoiseEmbedding, Shape, initialise


class PublishedViT(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes); `losses` trains the blocks in turns, one a call."""

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        patch_size: int,
        hidden_size: int,
        layers: int,
        blocks: int,
        heads: int,
        classes: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.patch_size, self.generator = patch_size, generator
        self.partition = Partition.equi_probability(LogNormalNoise(P_mean=-1.2), blocks)
        self.edm = Preconditioning()
        self.patch = nn.Linear(channels * patch_size**2, hidden_size)
        self.position = positions((image_size // patch_size) ** 2, hidden_size)
        self.label = positions(classes, hidden_size)
        self.noise = NoiseEmbedding(hidden_size)
        shape = Shape(hidden_size=hidden_size, heads=heads)
        each = layers // blocks
        self.blocks = nn.ModuleList(nn.ModuleList(Layer(shape) for _ in range(each)) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, classes)
        self._turn = cycle(range(blocks))
        initialise(self)

    def predict(self, block: int, images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """Logits (N, classes) of one block for z (N, D) at sigma (N,)."""
        condition = self.noise(self.edm.c_noise(sigma))
        x = self.patch(patches_of(images, self.patch_size)) + placed(self.position, images)
        x = torch.cat([self.edm.c_in(sigma)[:, None, None] * z[:, None], x], dim=1)  # (N, 1 + T, D)
        nothing = x[:, :0]  # all tokens are in one stream, which the noise level modulates
        layers = self.blocks[block]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            _, x = layer(nothing, x, condition, False)
        denoised = self.edm.c_skip(sigma)[:, None] * z + self.edm.c_out(sigma)[:, None] * x[:, 0]
        logits: Tensor = self.head(self.norm(denoised))
        return logits

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy of each example, (N,), for the block whose turn it is."""
        block = next(self._turn)
        sigma = self.partition.sample(block, len(labels), Seeded(self.generator))
        clean = F.normalize(self.label(labels), dim=1)
        z = clean + sigma[:, None] * torch.randn(clean.shape, generator=self.generator)
        loss = F.cross_entropy(self.predict(block, images, z, sigma), labels, reduction="none")
        return self.edm.weight(sigma) * loss

    def chain(self, images: Tensor) -> list[Tensor]:
        """Logits after each block: one Euler step a block, from sigma_max to sigma_min."""
        law, blocks = self.partition.law, self.partition.blocks
        last = max(1, blocks - 1)
        p_low, p_high = law.cdf(law.low), law.cdf(law.high)
        shares = torch.tensor([1 - i / last for i in range(blocks)] if blocks > 1 else [0.0])
        grid = law.quantiles((p_low + (p_high - p_low) * shares).double()).clamp(law.low, law.high).tolist()
        shape = (len(images), self.label.embedding_dim)
        z = (1 + grid[0] ** 2) ** 0.5 * torch.randn(shape, generator=self.generator)
        found = []
        for block, sigma in enumerate(grid):
            logits = self.predict(block, images, z, torch.full((len(images),), sigma))
            found.append(logits)
            if block + 1 < blocks:
                estimate = logits.softmax(dim=1) @ self.label.weight
                z = z + (grid[block + 1] - sigma) * (z - estimate) / sigma
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.chain(images)[-1]
