"""Vision transformer classifier as DiffusionBlocks (arXiv 2506.14202, section 4.1 and appendix).

The target is the label's embedding. Its noisy version z takes the place of the class token, the image
patches stay clean, and adaLN (Peebles & Xie 2023) modulates each layer by the noise level. Label
embeddings have unit norm in training and at inference alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .denoiser import Denoiser
from .noise import Partition
from .preconditioning import Preconditioning


class NoiseEmbedding(nn.Module):
    """Sinusoidal features of c_noise = ln(sigma)/4, then a two-layer perceptron: (N,) -> (N, D)."""

    frequencies: Tensor

    def __init__(self, hidden_size: int, features: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 ** torch.linspace(-2, 4, features // 2), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size), nn.SiLU()
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies  # (N, features/2)
        embedded: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, D)."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, d // self.heads)  # (N, T, 3, H, d_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, H, T, d_head)
        # Written out rather than fused: the audit differentiates gradients, in forward mode too.
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d // self.heads), dim=-1)  # (N, H, T, T)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, t, d))
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer; adaLN gives shift, scale and gate to each half."""

    def __init__(self, hidden_size: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.attention = Attention(hidden_size, heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False)
        width = int(hidden_size * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, hidden_size))
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        # adaLN-zero: every layer starts as the identity.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        out: Tensor = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return out


class Block(nn.Module):
    """Consecutive layers that own one noise interval: tokens (N, T+1, D), condition (N, D) -> (N, D)."""

    def __init__(self, layers: int, hidden_size: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(hidden_size, heads, mlp_ratio) for _ in range(layers))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, condition)
        return tokens[:, 0]


class ViTClassifier(Denoiser):
    """Images (N, C, H, W) in [0, 1], labels in [0, classes).

    `layers` are dealt evenly to `partition.blocks` blocks. The label table is orthonormal and never
    trained: it is the interface between the blocks, so no block may move it.
    """

    label_table: Tensor

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        image_size: int = 8,
        channels: int = 1,
        patch_size: int = 2,
        hidden_size: int = 64,
        layers: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        classes: int = 10,
    ) -> None:
        super().__init__(partition, preconditioning or Preconditioning())
        if image_size % patch_size:
            raise InputError("patch_size", patch_size, f"must divide image_size={image_size}")
        if hidden_size % heads:
            raise InputError("heads", heads, f"must divide hidden_size={hidden_size}")
        if layers % partition.blocks:
            raise InputError("layers", layers, f"must be a multiple of blocks={partition.blocks}")
        if classes > hidden_size:
            raise InputError("classes", classes, f"must not exceed hidden_size={hidden_size}")
        self.patch_size = patch_size
        patches = (image_size // patch_size) ** 2
        self.patch_embedding = nn.Linear(channels * patch_size**2, hidden_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches + 1, hidden_size))
        self.noise_embedding = NoiseEmbedding(hidden_size)
        self.blocks = nn.ModuleList(
            Block(layers // partition.blocks, hidden_size, heads, mlp_ratio) for _ in range(partition.blocks)
        )
        self.final_norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, classes)
        # A fixed table: unit norm by construction, the same in training and at inference.
        table = torch.linalg.qr(torch.randn(hidden_size, classes))[0].T.contiguous()
        self.register_buffer("label_table", table)

    def encode(self, inputs: Tensor) -> Tensor:
        n, c, h, w = inputs.shape
        p = self.patch_size
        patches = inputs.reshape(n, c, h // p, p, w // p, p).permute(
            0, 2, 4, 1, 3, 5
        )  # (N, H/p, W/p, C, p, p)
        patches = patches.reshape(n, (h // p) * (w // p), c * p * p)  # (N, T, C p^2)
        tokens: Tensor = self.patch_embedding(patches) + self.position[:, 1:]
        return tokens

    def target(self, labels: Tensor) -> Tensor:
        return self.label_table[labels]

    def condition(self, sigma: Tensor) -> Tensor:
        embedded: Tensor = self.noise_embedding(self.preconditioning.c_noise(sigma))
        return embedded

    def run_block(self, block: int, z: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        # Unit-norm targets have entries of size 1/sqrt(D); scaled up, the token matches its neighbours.
        token = z[:, None] * math.sqrt(z.shape[1]) * self.preconditioning.sigma_data + self.position[:, :1]
        out: Tensor = self.blocks[block](torch.cat([token, context], dim=1), self.condition(sigma))
        return out

    def readout(self, denoised: Tensor) -> Tensor:
        logits: Tensor = self.head(self.final_norm(denoised))
        return logits

    def estimate(self, prediction: Tensor) -> Tensor:
        return prediction.softmax(dim=1) @ self.label_table

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(prediction, labels, reduction="none")
