"""What the families of pretrained models share: a model cut into blocks, and the streams through a block.

The clean stream is the original model. A noisy token is a copy of a clean one, at its position, to which a linear
map of the noised target is added. It attends to what that clean token attends to, itself in its place, and no clean
token attends to it. The map and the modulation are zero at first, so both streams begin as the original model.

A block's context is (N, T, D + 1): what the blocks before it make of the input, and in the last column 1 where there
is a token and 0 where a short text is filled up.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..categorical_denoiser import EmbeddedDenoiser
from ..denoiser import Draw
from ..groups import Absent, Group
from ..noise import Partition, Source
from ..preconditioning import Preconditioning
from ..taps import Tap
from . import places
from .block import PretrainedBlock
from .settings import PretrainedSettings
from .token_taps import first_layer_taps
from .trunk import Trunk, build


class PretrainedDenoiser(EmbeddedDenoiser):
    """`table`: unit-norm rows, a target's each. `only`: the one block that is loaded, with the trunk."""

    blocks_alike: ClassVar[bool] = False

    def __init__(
        self,
        *,
        partition: Partition,
        preconditioning: Preconditioning | None = None,
        settings: PretrainedSettings,
        only: int | None = None,
    ) -> None:
        settings.check_sizes()
        folder, card = places.converted(settings.pretrained)
        trunk, layers = build(folder, only, card=card)
        # Without noised targets no table is needed; a language model's is as large as its vocabulary.
        table = self.target_table(settings, trunk) if settings.denoises else torch.ones(1, 1)
        super().__init__(partition, preconditioning or Preconditioning(), "prefix", table)
        self.settings = settings
        self.trunk = trunk
        self.each = settings.layers // settings.blocks
        self.blocks = nn.ModuleList(
            PretrainedBlock(own, self.new_interface(settings, b), settings, table.shape[1])
            if only in (None, b)
            else Absent()
            for b, own in enumerate(layers)
        )

    # What a family defines.

    @staticmethod
    @abstractmethod
    def target_table(settings: PretrainedSettings, trunk: Trunk) -> Tensor:
        """A row for every value that a target may take, (V, D')."""

    @staticmethod
    @abstractmethod
    def new_interface(settings: PretrainedSettings, block: int) -> nn.ModuleDict:
        """The modules of a block that `read` uses.

        The last block's are such that what it predicts can be handed back in the format of transformers.
        """

    @abstractmethod
    def present(self, inputs: Tensor, tokens: int) -> Tensor:
        """Where there is a token: bool (N, T)."""

    @abstractmethod
    def attends(self, present: Tensor) -> Tensor:
        """Which token (row) attends to which (column): present (N, T) -> bool (N or 1, 1, T, T)."""

    @abstractmethod
    def copied(self, tokens: int) -> Tensor:
        """The places (k,), of T, of the tokens that noisy tokens are copies of: of the last k targets."""

    @abstractmethod
    def read(self, block: int, out: Tensor, present: Tensor) -> Tensor:
        """Predictions from a block's output (n, T, D), by its own interface."""

    @abstractmethod
    def read_noisy(self, block: int, out: Tensor, noisy: Tensor, present: Tensor) -> Tensor:
        """Predictions from the outputs of clean tokens (n, T, D) and of m draws' noisy ones, (n, m, k, D)."""

    # The streams.

    def block(self, block: int) -> PretrainedBlock:
        found = self.blocks[block]
        assert isinstance(found, PretrainedBlock)
        return found

    def own(self, block: int, name: str, x: Tensor) -> Tensor:
        part = self.block(block)
        out: Tensor = (part.personal if name in part.personal else part.interface)[name](x)
        return out

    def embed(self, block: int, inputs: Tensor) -> Tensor:
        """The context of the first block; other blocks read what those before them make of it."""
        x = self.trunk.embed(inputs)
        present = self.present(inputs, x.shape[1])
        return torch.cat([x, present[:, :, None].to(x.dtype)], dim=2)

    def context(self, block: int, inputs: Tensor, before: Tensor | None = None) -> Tensor:
        if before is not None:
            return before
        if block == 0:
            return self.embed(0, inputs)  # nothing of it trains, and an attacker derives by the input
        with torch.no_grad():
            return self.features_before(block, inputs)

    def features_before(self, block: int, inputs: Tensor) -> Tensor:
        made = self.embed(0, inputs)
        for b in range(block):
            made = self.passed_on(b, made)
        return made

    @torch.no_grad()
    def contexts(self, inputs: Tensor) -> list[Tensor]:
        found = [self.embed(0, inputs)]
        for b in range(len(self.blocks) - 1):
            found.append(self.passed_on(b, found[-1]))
        return found

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each block makes of the input, (N, T, D) a block, and where there are tokens, bool (N, T)."""
        made = self.contexts(inputs)
        made.append(self.passed_on(len(self.blocks) - 1, made[-1]))
        return [parted(context)[0] for context in made[1:]], parted(made[0])[1]

    def passed_on(self, block: int, context: Tensor) -> Tensor:
        """The context of the next block."""
        x, present = parted(context)
        out = self.clean_stream(block, x, present)
        return torch.cat([out, context[:, :, -1:].to(out.dtype)], dim=2)

    def finished(self, out: Tensor) -> Tensor:
        """The last block's output after the original's final norm, in the original's precision."""
        return self.trunk.finish(out.to(next(self.trunk.parameters()).dtype))

    def clean_stream(self, block: int, x: Tensor, present: Tensor) -> Tensor:
        """The original layers, as they are by now: (n, T, D) -> (n, T, D)."""
        part, allowed = self.block(block), self.attends(present)
        positions = torch.arange(x.shape[1], device=x.device)
        x = x.to(part.dtype)
        for i, layer in enumerate(part.layers):
            x = self._layer(part, layer, x, allowed, positions, block * self.each + i)
        return x

    def both_streams(
        self, block: int, x: Tensor, present: Tensor, z: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the clean tokens (n, T, D) and of the noisy ones (n, m, k, D), of z (n m, ...) at m draws."""
        part, (n, t, size) = self.block(block), x.shape
        places = self.copied(t).to(x.device)  # (k,)
        draws, k = len(z) // n, len(places)
        target = self.posterior_mean(self.evidence(z, level))  # (n m, D') or (n m, T, D')
        target = target.view(n, draws, -1, target.shape[-1])[:, :, -k:]  # (n, m, k, D')
        x = x.to(part.dtype)
        noisy = x[:, None, places] + self.own(block, "noisy", target).to(x.dtype)  # (n, m, k, D)
        condition = self.condition(block, level)  # (n m, D)
        copies = places.repeat(draws)
        allowed = _with_copies(self.attends(present), copies)
        positions = torch.cat([torch.arange(t, device=x.device), copies])
        both = torch.cat([x, noisy.flatten(1, 2)], dim=1)  # (n, T + m k, D)
        for i, layer in enumerate(part.layers):
            shift, scale = part.modulation[i](condition).view(n, draws, 1, 2 * size).chunk(2, dim=-1)
            noisy = both[:, t:].view(n, draws, k, size)
            noisy = (noisy * (1 + scale) + shift).to(x.dtype)
            both = torch.cat([both[:, :t], noisy.flatten(1, 2)], dim=1)
            both = self._layer(part, layer, both, allowed, positions, block * self.each + i)
        return both[:, :t], both[:, t:].view(n, draws, k, size)

    def _layer(
        self,
        part: PretrainedBlock,
        layer: nn.Module,
        x: Tensor,
        allowed: Tensor,
        positions: Tensor,
        index: int,
    ) -> Tensor:
        if part.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(
                self.trunk.run, [layer], x, allowed, positions, index, use_reentrant=False
            )
            return kept
        return self.trunk.run([layer], x, allowed, positions, index)

    # Predictions and losses.

    def predict(self, block: int, z: Tensor, level: Tensor, context: Tensor) -> Tensor:
        x, present = parted(context)
        if self.settings.objective == "denoise":
            return self._denoised(block, z, level, *self.both_streams(block, x, present, z, level), present)
        read = self.read(block, self.clean_stream(block, x, present), present)
        return read.repeat_interleave(len(z) // len(x), dim=0)

    def _denoised(
        self, block: int, z: Tensor, level: Tensor, clean: Tensor, noisy: Tensor, present: Tensor
    ) -> Tensor:
        return self.read_noisy(block, clean, noisy, present) + self.evidence(z, level)

    def block_loss(self, block: int, z: Tensor, level: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        if self.settings.objective != "mixed":
            return self.loss(self.predict(block, z, level, context), targets)
        x, present = parted(context)
        clean, noisy = self.both_streams(block, x, present, z, level)
        denoising = self.loss(self._denoised(block, z, level, clean, noisy, present), targets)
        draws = len(z) // len(x)
        ordinary = self.loss(self._read_at_the_end(block, clean, present), targets[::draws])
        return denoising + ordinary.repeat_interleave(draws, dim=0)

    def _read_at_the_end(self, block: int, out: Tensor, present: Tensor) -> Tensor:
        """The whole model's own predictions from a block's output, through the blocks after it."""
        last = len(self.blocks) - 1
        for later in range(block + 1, last + 1):
            out = self.clean_stream(later, out, present)
        return self.read(last, out, present)

    def clean(self, targets: Tensor) -> Tensor:
        if self.settings.denoises:
            return super().clean(targets)
        return torch.zeros(len(targets), 0, device=targets.device)

    def draw(self, block: int, targets: Tensor, source: Source) -> Draw:
        if self.settings.denoises:
            return super().draw(block, targets, source)
        return Draw(torch.ones(len(targets)), torch.zeros(len(targets), 0))

    def advance(
        self, z: Tensor, prediction: Tensor, level: float, to: float, generator: torch.Generator
    ) -> Tensor:
        """Where blocks are trained to predict by themselves, nothing is handed on but their features."""
        if self.settings.objective != "denoise":
            return z
        return super().advance(z, prediction, level, to, generator)

    def taps(self, block: int) -> tuple[Tap, ...]:
        if block or self.settings.trains != "block" or self.settings.kind.input_classes is None:
            return ()
        return first_layer_taps(self.trunk, self.block(0).layers[0], self.block(0).dtype)

    def freeze_all_but(self, block: int, interface: bool = True) -> nn.Module:
        """As of any model; and what a round trains, and so what leaves, has no company's own parts over it."""
        for part in self.blocks:
            if isinstance(part, PretrainedBlock):
                part.lift()
        return super().freeze_all_but(block, interface)

    def groups(self, block: int | None, interface: bool = True) -> dict[str, Group]:
        found = super().groups(block, interface)
        if block is None:  # the trunk, and a table that follows from settings and trunk
            return dict.fromkeys(found, "pinned")
        return found


def parted(context: Tensor) -> tuple[Tensor, Tensor]:
    """A context's activations (n, T, D), and where there are tokens, bool (n, T)."""
    return context[:, :, :-1], context[:, :, -1] > 0.5


def _with_copies(allowed: Tensor, copies: Tensor) -> Tensor:
    """(N or 1, 1, T, T) -> (N or 1, 1, T + S, T + S), with S noisy copies of the tokens at `copies` (S,)."""
    n, _, t, _ = allowed.shape
    s = len(copies)
    own = allowed[:, :, copies].clone()  # (N, 1, S, T)
    own[:, :, torch.arange(s, device=copies.device), copies] = False
    alone = torch.eye(s, dtype=torch.bool, device=allowed.device).expand(n, 1, s, s)
    unseen = allowed.new_zeros(n, 1, t, s)
    return torch.cat([torch.cat([allowed, unseen], dim=3), torch.cat([own, alone], dim=3)], dim=2)
