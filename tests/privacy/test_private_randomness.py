"""All randomness of private training comes from the cryptographic stream, anew for every example."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # a dispatch mode loads it, and loading it makes generators
from support.private_training import FAMILIES, setting
from torch.utils._python_dispatch import TorchDispatchMode

import fedblocks
from fedblocks.blocks import Seeded
from fedblocks.client.training import train_block
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource

# Everything that runs between the charge and the masked update, in the package's folders.
PRIVATE_PATH = (
    "client/app.py", "client/training.py", "protocol/release.py",
    "client/batches.py", "privacy", "blocks/objective.py",
    "blocks/denoiser.py", "blocks/masked.py", "blocks/noise.py", "blocks/categorical_denoiser.py",
    "blocks/transformer.py",
)  # fmt: skip
# Not on the path: a class and methods that serve public data and sampling, which are handed a generator.
PUBLIC = {"Seeded", "prior", "advance", "chain_quality", "bits"}
FORBIDDEN = {
    "torch.Generator", "torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.rand_like",
    "torch.randn_like", "torch.normal", "torch.bernoulli", "torch.multinomial", "torch.manual_seed",
    "np.random", "numpy.random", "random.random", "random.Random", "F.dropout", "nn.Dropout",
}  # fmt: skip


def files() -> list[Path]:
    root = Path(fedblocks.__file__).parent
    found = [root / name for name in PRIVATE_PATH]
    return [file for path in found for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def used(tree: ast.AST) -> Iterator[str]:
    """Dotted names in `tree`, without what is public and without annotations."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name in PUBLIC:
            continue
        if isinstance(child, ast.arg):
            continue
        if isinstance(child, ast.Import):
            yield from (f"{alias.name}." for alias in child.names)
        if isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        if isinstance(child, ast.Attribute):
            yield ast.unparse(child)
        yield from used(child)


@pytest.mark.parametrize("file", files(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_other_generator_is_named_on_the_private_path(file: Path) -> None:
    """Would catch a new use of a generator that a seed of 32 bits, or none, stands behind."""
    for name in used(ast.parse(file.read_text())):
        for forbidden in FORBIDDEN:
            assert not f"{name}.".startswith(f"{forbidden}."), f"{file.name} uses {name}"
        assert name != "random.", f"{file.name} imports random"


class NoRandomKernels(TorchDispatchMode):
    """Fails when an operation draws random numbers of PyTorch's own."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Attention is marked for its dropout, which has to be 0.
        attention = "scaled_dot_product" in str(func) and (args[3:4] or (0.0,))[0] == 0.0
        drawn = torch.Tag.nondeterministic_seeded in func.tags and not attention
        assert not drawn, f"{func} draws random numbers"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_other_generator() -> Iterator[None]:
    """Fails when PyTorch's, Python's or NumPy's own generator is used."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a generator other than the cryptographic one was made")

    python, numpy_, torch_ = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch, NoRandomKernels():
        patch.setattr(np.random, "default_rng", refused)
        patch.setattr(np.random, "Generator", refused)
        patch.setattr(torch, "Generator", refused)
        patch.setattr(random, "Random", refused)
        yield
    assert random.getstate() == python
    assert str(np.random.get_state(legacy=False)) == str(numpy_)
    assert torch.equal(torch.get_rng_state(), torch_)


@pytest.mark.parametrize("family", FAMILIES)
def test_private_training_draws_from_the_cryptographic_stream_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch at run time what a name hides: a kernel, a sampler or a library that seeds itself."""
    s = setting(family)
    # The mode belongs to the thread that enters it, and training has a thread of its own.
    monkeypatch.setattr("fedblocks.client.training.flushed", watched)
    trained = s.train(Randomness.from_seed(1))
    assert len(trained) == s.size


def watched(work: Any) -> Any:
    with no_other_generator():
        return work()


def test_the_watch_sees_a_seeded_kernel() -> None:
    """The control: would catch a watch that sees nothing."""
    with pytest.raises(AssertionError, match="draws random numbers"), NoRandomKernels():
        torch.randn(3)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(AssertionError, match="draws random numbers"), NoRandomKernels():
        Seeded(generator).uniform(3)


def test_seeds_that_differ_beyond_32_bits_give_other_noise() -> None:
    """The attack: 2^32 seeds can be tried. Would catch a source that keeps 32 bits of what it is given."""
    ours = [CryptographicSource(Randomness.from_seed(seed)).normal(100) for seed in (7, 7 + (1 << 32))]
    assert not torch.equal(*ours)
    theirs = [torch.randn(100, generator=torch.Generator().manual_seed(s)) for s in (7, 7 + (1 << 32))]
    assert torch.equal(*theirs)  # the control: what a generator of PyTorch's does on the CPU


def test_every_value_of_a_draw_is_used_once() -> None:
    """Would catch a source that starts again at each call: examples would share their noise."""
    source = CryptographicSource(Randomness.from_seed(3))
    drawn = torch.cat([source.normal(50, 4).flatten() for _ in range(20)])
    assert len(drawn.unique()) == len(drawn)
    u = source.uniform(1 << 16)
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert abs(float(u.double().mean()) - 0.5) < 0.006  # five deviations


def test_train_block_is_what_the_handler_calls() -> None:
    """Would catch a test that watches another function than the one which runs."""
    from fedblocks.client import app

    assert app.train_block is train_block
