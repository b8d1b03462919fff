"""The report's data on a pretrained model: which it is, what of it trains and travels, and what it has kept."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ...blocks import build_model
from ...blocks.pretrained import places
from ...blocks.pretrained.settings import PretrainedSettings
from ...server.representation import Representation
from ...settings import Plan
from .canvas import INK, LEFT, PRIVATE, axes, chart, title_at_top
from .document import Adapted
from .measures import three_digits
from .quality_figures import name_blocks

_BYTES = {"float32": 4, "bfloat16": 2}


def adapted(plan: Plan, size: int, down: int) -> Adapted | None:
    """`size`: values of an update; `down`: bytes of the state that a company receives to train the last trained
    block. None where the model began with nothing. Raises: InputError where its folder is not on this machine."""
    model = plan.model
    if not isinstance(model, PretrainedSettings):
        return None
    _, card = places.converted(model.pretrained)
    one = build_model(model, plan.noise, 0)
    shared = {id(t) for name, t in one.state_dict().items() if not name.startswith("blocks.")}
    block = one.groups(0, plan.training.interface)
    state = one.state_dict()
    pinned = [state[name] for name, group in block.items() if group == "pinned"]
    trunk = [t for name, t in state.items() if id(t) in shared]
    source = sum(t.numel() for t in trunk) + model.blocks * sum(t.numel() for t in pinned)
    if model.trains != "lora":  # what trains are weights of the source too
        own = one.block(0).layers.state_dict(prefix="blocks.0.layers.")  # type: ignore[operator]
        trained = [name for name in own if block[name] == "trained"]
        source += model.blocks * sum(state[name].numel() for name in trained)
    of_source = source * _BYTES[card.dtype]
    up = -(-size * plan.bits // 8)
    return Adapted(
        name=card.name,
        architecture=card.architecture,
        digest=model.pretrained,
        source=card.source,
        trains=_trains(model, interface=plan.training.interface),
        objective=model.objective,
        blocks=plan.trained_blocks,
        of_blocks=model.blocks,
        trained_values=size,
        pinned_values=sum(t.numel() for t in pinned),
        model_bytes=of_source,
        bytes_up_a_round=up,
        bytes_down_a_round=down,
        share_up=up / of_source,
        share_down=down / of_source,
    )


def _trains(model: PretrainedSettings, *, interface: bool) -> str:
    found = {
        "block": "all weights of a block",
        "lora": f"low-rank additions of rank {model.lora_rank} to "
        f"{', '.join(model.lora_targets) or 'the maps of queries and values'}",
        "bias": "biases and norms",
    }[model.trains]
    return f"{found}, and the block's own head and noise embedding" if interface else found


def told(found: Adapted, kept: Representation | None) -> str:
    """The section in one line."""
    text = f"{found.name}, of which {found.trains} train"
    if kept is None:
        return f"{text}; what it has kept is measured when the run ends."
    before, after = kept.before, kept.after
    losses = (before.public_loss, after.public_loss)
    moved = " → ".join("not finite" if value is None else three_digits(value) for value in losses)
    return (
        f"{text}; public loss {moved}, alignment of features at least {min(kept.cka):.2f}, {kept.forgotten:.1%} of "
        "public answers forgotten."
    )


def alignment(kept: Representation) -> Markup:
    """Linear CKA of the features after each block, before against after."""
    label = "Bars of the alignment of features before and after, 0 to 1: " + "; ".join(
        f"block {b} {value:.3f}" for b, value in enumerate(kept.cka)
    )

    def draw(figure: Figure, wide: bool) -> None:
        ax = axes(figure, LEFT, 40, 24, 30)
        numbers: dict[str, Any] = {
            "textcoords": "offset points",
            "ha": "center",
            "fontsize": 11,
            "color": INK,
        }
        ax.bar(range(len(kept.cka)), kept.cka, 0.4, color=PRIVATE)
        for b, value in enumerate(kept.cka):
            if len(kept.cka) <= (12 if wide else 6):
                ax.annotate(f"{value:.2f}", (b, value), (0, 3), **numbers)
        ax.set_ylim(0, 1.1)
        ax.set_yticks([0, 0.5, 1])
        title_at_top(figure, "linear CKA, 1: as before but for rotation and scale")
        name_blocks(ax, len(kept.cka))

    return chart("alignment", label, draw, 220)
