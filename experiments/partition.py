"""Dealing one data set to several companies, with skewed labels (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ..client.data import Examples
from ..config import CompanySettings, DiTSettings, ModelSettings, ViTSettings
from ..errors import InputError

SMALLEST_PART = 10


def deal(
    private: Examples, model: ModelSettings, companies: CompanySettings, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Disjoint index arrays, one a company, which together cover all examples.

    Where examples have a class, each class is shared out by a Dirichlet(alpha) draw: small alpha, much skew.
    Texts and series are cut into stretches, so that companies differ as their documents and times do.
    """
    if len(private) < companies.count * SMALLEST_PART:
        rule = f"{len(private)} examples are too few to deal out"
        raise InputError("companies.count", companies.count, rule)
    if isinstance(model, ViTSettings | DiTSettings):
        labels = private.targets if isinstance(model, ViTSettings) else private.inputs
        return _by_label(labels.numpy(), companies.count, companies.alpha, seed)
    return list(np.array_split(np.arange(len(private), dtype=np.int64), companies.count))


def _by_label(
    labels: npt.NDArray[np.int64], companies: int, alpha: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """By flwr-datasets."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    dealer = DirichletPartitioner(
        num_partitions=companies,
        partition_by="label",
        alpha=alpha,
        min_partition_size=SMALLEST_PART,
        self_balancing=False,
        seed=seed % 2**32,
    )
    dealer.dataset = Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    try:
        return [np.asarray(dealer.load_partition(i)["index"], dtype=np.int64) for i in range(companies)]
    except ValueError:
        rule = f"no draw left every company {SMALLEST_PART} examples; raise alpha"
        raise InputError("companies.alpha", alpha, rule) from None
