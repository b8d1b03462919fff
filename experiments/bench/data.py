"""Reading a large CSV: our reader against pandas' pyarrow engine, in processes of their own, in turn.

Ours ends with the arrays that training reads, checked and scaled by a contract; pandas' with a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

COLUMNS = 30
_ROWS_AT_ONCE = 50_000
_CHILD = """
import json, resource, sys, time
from pathlib import Path
kind, path = sys.argv[1:]
if kind == "pandas":
    import pandas as pd, pyarrow.csv
else:
    from fedblocks.client.data.findings import Findings
    from fedblocks.client.data.tables.load import load_table
    from fedblocks.settings.contract import TableContract
    import pyarrow.csv
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
started = time.perf_counter()
if kind == "pandas":
    kept = int(pd.read_csv(path, engine="pyarrow").memory_usage().sum())
else:
    numeric = {f"x{i}": (0, 1000) for i in range(COLUMNS)}
    contract = TableContract(label="label", labels=("no", "yes"), numeric=numeric)
    found = load_table("data", path, contract, Findings(path))
    kept = sum(t.numel() * t.element_size() for t in (found.inputs, found.targets))
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(json.dumps({"seconds": seconds, "peak": peak, "kept": kept}))
"""


def measure(
    megabytes: int = 1000, repeats: int = 3, on_progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """`csv_ratio_to_pandas`: pandas' seconds by ours; `peak_ratio`: our peak memory by the arrays that are kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.csv"
        rows = _write(path, megabytes << 20)
        on_progress(f"{path.stat().st_size / 2**20:.0f} MiB, {rows:,} rows")
        found: dict[str, list[dict[str, float]]] = {"ours": [], "pandas": []}
        for _ in range(repeats):
            for kind, runs in found.items():
                runs.append(_read(kind, path))
                on_progress(f"{kind}: {runs[-1]['seconds']:.2f} s, peak {runs[-1]['peak'] / 2**20:.0f} MiB")
    ours, pandas = found["ours"], found["pandas"]
    return {
        "megabytes": megabytes,
        "rows": rows,
        "csv_ratio_to_pandas": median(p["seconds"] / o["seconds"] for o, p in zip(ours, pandas, strict=True)),
        "peak_ratio": max(run["peak"] / run["kept"] for run in ours),
        "peak_ratio_pandas": max(run["peak"] / run["kept"] for run in pandas),
        "seconds": median(run["seconds"] for run in ours),
        "seconds_pandas": median(run["seconds"] for run in pandas),
        "repeats": repeats,
    }


def _write(path: Path, size: int) -> int:
    """Rows of COLUMNS numbers of some digits and a label, until the file has this many bytes."""
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    rows = 0
    schema = pa.schema([*((f"x{i}", pa.float64()) for i in range(COLUMNS)), ("label", pa.string())])
    with path.open("wb") as file, csv.CSVWriter(file, schema) as writer:
        while path.stat().st_size < size:
            numbers = np.round(rng.random((COLUMNS, _ROWS_AT_ONCE)) * 1000, 6)
            labels = np.where(rng.random(_ROWS_AT_ONCE) < 0.5, "yes", "no")
            writer.write_table(pa.table([*map(pa.array, numbers), pa.array(labels)], schema=schema))
            file.flush()
            rows += _ROWS_AT_ONCE
    return rows


def _read(kind: str, path: Path) -> dict[str, float]:
    code = _CHILD.replace("COLUMNS", str(COLUMNS))
    words = [sys.executable, "-c", code, kind, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=dict(os.environ))
    result: dict[str, float] = json.loads(done.stdout)
    return result
