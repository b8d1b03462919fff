"""What the language models' blocks are compared with, trained end to end.

`Llama`: no noise, no modulation, one loss at the end; with `layers` divided by the number of blocks it is
the shallow control. `LoopedLlama`: the weight-tied core of Huginn (Geiping et al. 2025, arXiv 2502.05171),
trained by back-propagation through all of its iterations.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...blocks import Schedule
from ...blocks.families.ar_lm import ARLanguageModelSettings
from ...blocks.families.recurrent_lm import RecurrentLanguageModelSettings
from ...blocks.training import optimizer_of
from ...blocks.transformer import Layer, Shape

LanguageSettings = ARLanguageModelSettings | RecurrentLanguageModelSettings


class Llama(nn.Module):
    """Tokens (N, T) -> logits (N, T, vocabulary), those at t from the tokens before t."""

    def __init__(self, model: LanguageSettings, layers: int) -> None:
        super().__init__()
        self.start = model.vocabulary  # a token of its own before the first
        self.token = nn.Embedding(model.vocabulary + 1, model.hidden_size)
        self.layers = layers_of(model, layers)
        self.norm = nn.LayerNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, model.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(through(self.layers, self.before(tokens))))
        return logits

    def before(self, tokens: Tensor) -> Tensor:
        """At t the embedding of the token at t-1: (N, T, D)."""
        embedded: Tensor = self.token(F.pad(tokens, (1, -1), value=self.start))
        return embedded


class LoopedLlama(Llama):
    """A quarter of the layers is the prelude, a half the core, a quarter the coda.

    Every iteration of the core reads its own last state beside what the prelude made of the text, mixed by
    a linear adapter; the state starts from zero and is normalised after each iteration.
    """

    def __init__(self, model: RecurrentLanguageModelSettings) -> None:
        end = model.layers // 4
        super().__init__(model, end)
        self.recurrences = model.recurrences
        self.adapter = nn.Linear(2 * model.hidden_size, model.hidden_size, bias=False)
        self.core = layers_of(model, model.layers - 2 * end)
        self.coda = layers_of(model, end)

    def forward(self, tokens: Tensor) -> Tensor:
        read = through(self.layers, self.before(tokens))  # (N, T, D)
        state = torch.zeros_like(read)
        for _ in range(self.recurrences):
            state = through(self.core, self.adapter(torch.cat([state, read], dim=-1)))
            state = F.rms_norm(state, state.shape[-1:])
        logits: Tensor = self.head(self.norm(through(self.coda, state)))
        return logits


def layers_of(model: LanguageSettings, count: int) -> nn.ModuleList:
    shape = Shape(
        hidden_size=model.hidden_size,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        style="llama",
        causal=True,
    )
    return nn.ModuleList(Layer(shape, modulated=False) for _ in range(count))


def through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        assert isinstance(layer, Layer)
        x = layer.clean(x)
    return x


def train_end_to_end(
    model: Llama,
    tokens: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda step: None,
) -> float:
    """The recipe of `blocks.training.BlockTrainer` on the next-token loss; returns processor seconds."""
    optimizer, rate = optimizer_of(model.parameters(), schedule)
    started = time.process_time()
    for step in range(schedule.steps):
        rows = tokens[torch.randint(len(tokens), (schedule.batch_size,), generator=generator)]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(rows).flatten(0, 1), rows.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        on_step(step + 1)
    model.requires_grad_(False).eval()
    return time.process_time() - started
