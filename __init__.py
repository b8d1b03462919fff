"""fedblocks: federated, company-local adaptation of DiffusionBlocks.

`blocks` and `privacy` know nothing of Flower; `client` and `server` carry them over it;
`threat_model` attacks what they release; `experiments` runs everything on one machine.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .experiments.interface import audit, load_run, resume, simulate

# Before MKL's first call, and for every process that trains: without it MKL gives a row other last bits by where
# it lies in memory, which `privacy.invariance` refuses. It took no time that could be measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = version("fedblocks")
__all__ = ["__version__", "audit", "load_run", "resume", "simulate"]


def __getattr__(name: str) -> object:
    """The Python interface, loaded when it is asked for: it needs torch and Flower."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".experiments.interface", __name__), name)
