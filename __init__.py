"""fedblocks: federated, company-local adaptation of DiffusionBlocks.

`blocks` and `privacy` know nothing of Flower; `client` and `server` carry them over it;
`threat_model` attacks what they release; `experiments` runs everything on one machine.
"""

from importlib.metadata import version

__version__ = version("fedblocks")
