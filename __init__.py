"""fedblocks: federated, company-local adaptation of DiffusionBlocks.

`blocks` and `privacy` know nothing of Flower; `client` and `server` carry them over it;
`threat_model` attacks what they release; `experiments` runs everything on one machine.
"""

import os
from importlib.metadata import version

# Before MKL's first call, and for every process that trains: without it MKL gives a row other last bits by where
# it lies in memory, which `privacy.invariance` refuses. It took no time that could be measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = version("fedblocks")
