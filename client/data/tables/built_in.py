"""Tables that packages ship, so that nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def _breast_cancer(private: bool) -> pd.DataFrame:
    """Wisconsin's 569 rows of 30 numbers (scikit-learn): every ninth row is public, the others are private."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer(as_frame=True)
    frame = found.frame.assign(target=found.target.map({0: "malignant", 1: "benign"}))
    mine = np.arange(len(frame)) % 9 != 0
    return frame[mine if private else ~mine].reset_index(drop=True)


_OCCUPATIONS = ("student", "unskilled", "white-collar", "skilled", "managerial", "professional")


def _fair(private: bool) -> pd.DataFrame:
    """Redbook's survey of 6,366 marriages (Fair 1978, in statsmodels): numbers, and two occupations as categories.

    Every fiftieth row is public. `affair`: whether there was one.
    """
    from statsmodels.datasets import fair

    frame = fair.load_pandas().data
    for name in ("occupation", "occupation_husb"):
        frame[name] = frame[name].map(lambda code: _OCCUPATIONS[int(code) - 1])
    frame["affair"] = (frame.pop("affairs") > 0).map({True: "yes", False: "no"})
    mine = np.arange(len(frame)) % 50 != 0
    return frame[mine if private else ~mine].reset_index(drop=True)


BUILT_IN: dict[str, Callable[[], pd.DataFrame]] = {
    "breast-cancer-public": lambda: _breast_cancer(False),
    "breast-cancer-private": lambda: _breast_cancer(True),
    "fair-public": lambda: _fair(False),
    "fair-private": lambda: _fair(True),
}
