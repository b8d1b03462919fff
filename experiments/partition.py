"""Dealing one data set to several companies, with skewed labels (Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ..errors import InputError

SMALLEST_PART = 10


def deal(
    labels: npt.NDArray[np.int64], companies: int, alpha: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Disjoint index arrays, one a company, which together cover all examples; by flwr-datasets.

    Each label's examples are shared out by a Dirichlet(alpha) draw: small alpha, strong skew.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    if len(labels) < companies * SMALLEST_PART:
        raise InputError("companies.count", companies, f"{len(labels)} examples are too few to deal out")
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
