"""What a pretrained model's representation was before it was adapted, and what has become of it.

    before, after = observe(public_model, examples, seed), observe(adapted_model, examples, seed)
    found = compare(before, after)

What is looked at are examples of a classifier, with the mean of their tokens after a block, or next tokens of a
decoder, each with the place that it is predicted from. Features are compared by linear centred kernel alignment
(Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, equation 4, with linear kernels), and by what a linear probe
reads from them: ridge regression to one-hot classes, in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..examples import Examples
from ..sampler import sample_chain
from .block import wide
from .denoiser import PretrainedDenoiser

RIDGE = 10.0  # on standardised features
RAREST = 0.25  # share of what is looked at that the rare classes hold at most, if more than one is rare
_PROBED = 20  # classes of a probe: the most frequent next tokens
_PLACES = 2000  # next tokens that are looked at, of all examples together
_FITTED = 2 / 3  # of them, for the probe
_TEXTS_AT_ONCE, _AT_ONCE = 8, 64


@dataclass(frozen=True)
class Observed:
    """`features` (M, D) after each block, `labels` (M,) and the model's own answers (M,)."""

    features: tuple[Tensor, ...]
    labels: Tensor
    answers: Tensor

    @property
    def right(self) -> Tensor:
        return self.answers == self.labels


@torch.no_grad()
def observe(model: PretrainedDenoiser, examples: Examples, seed: int) -> Observed:
    """At noise of this seed, in the order of the examples."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    by_token = examples.targets.dim() > 1
    each = max(1, _PLACES // max(len(examples), 1))  # places of a text
    features: list[list[Tensor]] = [[] for _ in model.blocks]
    labels, answers = [], []
    for rows in torch.arange(len(examples)).split(_TEXTS_AT_ONCE if by_token else _AT_ONCE):
        inputs = examples.inputs[rows].to(model.device)
        targets = examples.targets[rows].to(model.device)
        last = sample_chain(model, inputs, targets, generator)[-1].argmax(dim=-1)  # (n,) or (n, T)
        outputs, present = model.outputs(inputs)
        if by_token:  # the token at t is predicted from the place before it
            length = targets.shape[1]
            places = torch.linspace(1, length - 1, min(each, length - 1)).round().long().to(model.device)
            labels.append(targets[:, places].flatten().cpu())
            answers.append(last[:, places].flatten().cpu())
            pooled = [out[:, places - 1].flatten(0, 1) for out in outputs]
        else:
            labels.append(targets.cpu())
            answers.append(last.cpu())
            weights = present[:, :, None].to(outputs[0].dtype)
            pooled = [(wide(out) * weights).sum(1) / weights.sum(1).clamp(min=1) for out in outputs]
        for own, found in zip(features, pooled, strict=True):
            own.append(found.double().cpu())
    return Observed(tuple(torch.cat(own) for own in features), torch.cat(labels), torch.cat(answers))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """|Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features (M, D) and (M, D') of the same M; 1: alike but for rotation
    and scale. Features without any variation are alike if both are."""
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < min(x.shape[1], y.shape[1]):  # by the examples' inner products, of which there are fewer
        k, g = x @ x.T, y @ y.T
        across, own, other = (k * g).sum(), k.norm(), g.norm()
    else:
        across, own, other = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    if own == 0 or other == 0:
        return float(own == other)
    return min(1.0, float(across / (own * other)))


def linear_probe(features: Tensor, labels: Tensor) -> float | None:
    """Accuracy on the last third, in an order that is always the same, of a probe of the others: features (M, D).

    None where there are fewer than two classes to tell apart, or nothing to judge by.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = round(_FITTED * len(labels))
    fit, judged = order[:cut], order[cut:]
    classes = labels.unique()
    if len(classes) < 2 or len(fit) < 2 or len(judged) < 1:
        return None
    mean, deviation = features[fit].mean(0), features[fit].std(0, correction=0)
    x = (features - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    y = (labels[:, None] == classes).to(x.dtype)  # (M, C)
    centre = y[fit].mean(0)
    a, b = x[fit], y[fit] - centre
    if len(a) < a.shape[1]:
        w = a.T @ torch.linalg.solve(a @ a.T + RIDGE * torch.eye(len(a), dtype=x.dtype), b)
    else:
        w = torch.linalg.solve(a.T @ a + RIDGE * torch.eye(a.shape[1], dtype=x.dtype), a.T @ b)
    chosen = classes[(x[judged] @ w + centre).argmax(dim=1)]
    return float((chosen == labels[judged]).double().mean())


@dataclass(frozen=True)
class Kept:
    """Of one model: what a probe reads from its last block, how often it is right, and how often on rare classes."""

    probe: float | None
    accuracy: float
    rare_accuracy: float


@dataclass(frozen=True)
class Comparison:
    """`cka` by block; `forgotten`: share of all that the first model had right and the second has not, `learnt`: the
    other way round. `rare`: classes, `rare_count`: how many of the `count` that were looked at are of them."""

    before: Kept
    after: Kept
    cka: tuple[float, ...]
    forgotten: float
    learnt: float
    rare: tuple[int, ...]
    rare_count: int
    count: int


def compare(before: Observed, after: Observed) -> Comparison:
    """Two models on the same examples."""
    labels = before.labels
    rare = _rare(labels)
    among = torch.isin(labels, torch.tensor(rare))
    probed = _probed(labels)

    def kept(seen: Observed) -> Kept:
        return Kept(
            probe=linear_probe(seen.features[-1][probed], labels[probed]),
            accuracy=float(seen.right.double().mean()),
            rare_accuracy=float(seen.right[among].double().mean()),
        )

    return Comparison(
        before=kept(before),
        after=kept(after),
        cka=tuple(linear_cka(x, y) for x, y in zip(before.features, after.features, strict=True)),
        forgotten=float((before.right & ~after.right).double().mean()),
        learnt=float((~before.right & after.right).double().mean()),
        rare=tuple(rare),
        rare_count=int(among.sum()),
        count=len(labels),
    )


def _rare(labels: Tensor) -> list[int]:
    """The rarest class, and those next to it while all together hold no more than `RAREST` of the labels."""
    classes, counts = labels.unique(return_counts=True)
    order = counts.argsort(stable=True)
    held = counts[order].cumsum(0) <= RAREST * len(labels)
    held[0] = True
    return sorted(int(c) for c in classes[order][held])


def _probed(labels: Tensor) -> Tensor:
    """Places of the labels of the most frequent classes."""
    classes, counts = labels.unique(return_counts=True)
    most = classes[counts.argsort(descending=True, stable=True)[:_PROBED]]
    return torch.isin(labels, most).nonzero()[:, 0]
