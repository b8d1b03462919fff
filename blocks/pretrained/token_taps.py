"""Where a pretrained model's first layer reads the tokens of a text, for the audit.

Where all weights of the first block train, the gradient of its first map of values is a sum of outer products with
what each token's embedding gives there, and shows them. A low-rank addition does not: its gradient has as many
directions as its rank, each a mixture of all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..taps import ValueTap
from .trunk import Trunk

_FUSED = ("c_attn", "Wqkv")  # queries, keys and values in one
_VALUES = ("value", "v_proj", "v_lin", *_FUSED)
_AT_ONCE = 64


def first_layer_taps(trunk: Trunk, layer: nn.Module, dtype: torch.dtype) -> tuple[ValueTap, ...]:
    """Of a model that reads tokens; `dtype`: of the activations in the layer."""
    maps = {name.rpartition(".")[2]: name for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
    own = next((name for name in maps if name in _VALUES), None)
    if own is None:
        return ()
    module = layer.get_submodule(maps[own])
    assert isinstance(module, nn.Linear)
    rows = slice(2 * module.out_features // 3 if own in _FUSED else 0, module.out_features)

    @torch.no_grad()
    def enter(values: Tensor, places: Tensor) -> Tensor:
        length, seen, found = int(places.max()) + 1, list[Tensor](), []
        positions = torch.arange(length)
        allowed = torch.ones(1, 1, length, length, dtype=torch.bool)
        handle = module.register_forward_hook(lambda _, args, out: seen.append(args[0]))
        try:
            for part in values.split(_AT_ONCE):
                x = trunk.embed(part[:, None].expand(-1, length))  # a token again and again, at every place
                trunk.run([layer], x.to(dtype), allowed, positions, 0)
                found.append(seen.pop()[:, places])
        finally:
            handle.remove()
        return torch.cat(found)

    return (ValueTap(field="tokens", weight=f"layers.0.{maps[own]}.weight", rows=rows, enter=enter),)
