"""What is measured of a representation, against closed forms, numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from support.families import VARIANTS, Variant

from fedblocks.blocks.examples import Examples
from fedblocks.blocks.pretrained.denoiser import PretrainedDenoiser
from fedblocks.blocks.pretrained.representation import (
    RIDGE,
    Observed,
    compare,
    linear_cka,
    linear_probe,
    observe,
)

PRETRAINED = [v for v in VARIANTS if v.settings.family.startswith("pretrained-")]


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [40, 900])
def test_alignment_is_one_for_a_rotation_and_scale_and_near_zero_for_what_is_independent(n: int) -> None:
    """Would catch features that are not centred, and the wrong one of the two ways to compute it."""
    x = gaussian(n, 60, 0)
    rotation = torch.linalg.qr(gaussian(60, 60, 1))[0]
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1.0, abs=1e-12)
    if n > 60:
        assert linear_cka(x, gaussian(n, 60, 2)) < 0.15
    # An affine map that is no rotation: between the two.
    assert linear_cka(x, x @ gaussian(60, 60, 3)) < 0.95


@pytest.mark.parametrize("shape", [(50, 80), (200, 30)])
def test_alignment_is_that_of_centred_gram_matrices(shape: tuple[int, int]) -> None:
    """Oracle: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix, as the paper's equations 3 and 4."""
    x, y = gaussian(*shape, 0).numpy(), (gaussian(*shape, 0) + gaussian(*shape, 1)).numpy()
    h = np.eye(len(x)) - 1 / len(x)

    def hsic(k: np.ndarray, g: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(np.trace(k @ h @ g @ h))

    k, g = x @ x.T, y @ y.T
    expected = hsic(k, g) / (hsic(k, k) * hsic(g, g)) ** 0.5
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("d", "classes"), [(10, 2), (10, 5), (400, 3)])
def test_the_probe_is_scikit_learns_ridge_classifier(d: int, classes: int) -> None:
    """Would catch a penalised intercept, features that are scaled by what is judged, and a split that moves."""
    labels = torch.randint(classes, (150,), generator=torch.Generator().manual_seed(1))
    x = gaussian(150, d, 2) * (1 + torch.arange(d)) + 0.5 * labels[:, None]
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    fit, judged = order[:100], order[100:]
    mean, deviation = x[fit].mean(0), x[fit].std(0, correction=0)
    scaled = ((x - mean) / deviation).numpy()
    oracle = RidgeClassifier(alpha=RIDGE).fit(scaled[fit], labels[fit].numpy())
    expected = oracle.score(scaled[judged], labels[judged].numpy())
    assert linear_probe(x, labels) == pytest.approx(expected, abs=1e-12)
    assert linear_probe(x, torch.zeros_like(labels)) is None


def test_what_is_forgotten_learnt_and_rare() -> None:
    labels = torch.tensor([0] * 10 + [1] * 6 + [2] * 3 + [3])
    before, after = labels.clone(), labels.clone()
    before[:4] = 9  # learnt later
    after[-2:] = 9  # one of class 2 and the one of class 3 are forgotten
    x = gaussian(20, 4, 0)
    found = compare(Observed((x,), labels, before), Observed((x,), labels, after))
    assert (found.forgotten, found.learnt) == (0.1, 0.2)
    assert (found.rare, found.rare_count, found.count) == ((2, 3), 4, 20)
    assert (found.before.rare_accuracy, found.after.rare_accuracy) == (1.0, 0.5)
    assert found.cka == (pytest.approx(1.0),)


@pytest.mark.parametrize("variant", PRETRAINED, ids=str)
def test_a_model_is_like_itself_and_its_answers_are_those_it_is_judged_by(variant: Variant) -> None:
    """Would catch padding that is pooled, a decoder's places that are off by one, and answers of another block."""
    model = variant.model()
    assert isinstance(model, PretrainedDenoiser)
    examples = Examples(*variant.examples(30))
    seen = observe(model, examples, 5)
    again = compare(seen, observe(model, examples, 5))
    assert again.cka == pytest.approx([1.0] * variant.settings.blocks)
    assert (again.forgotten, again.learnt) == (0.0, 0.0)
    assert all(len(own) == len(seen.labels) for own in seen.features)
    outputs, present = model.outputs(examples.inputs)
    if examples.targets.dim() == 1:
        own = outputs[-1][3][present[3]].mean(0)
        quality = model.chain_quality(examples.inputs, examples.targets, torch.Generator().manual_seed(5))
        assert again.before.accuracy == pytest.approx(quality[-1])
        torch.testing.assert_close(seen.features[-1][3].float(), own, rtol=1e-4, atol=1e-5)
    else:
        places = examples.targets.shape[1] - 1
        assert torch.equal(seen.labels.view(30, places), examples.targets[:, 1:])
        torch.testing.assert_close(seen.features[0].view(30, places, -1).float(), outputs[0][:, :-1].float())
