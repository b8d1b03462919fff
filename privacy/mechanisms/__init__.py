"""Mechanisms: noise that makes the release of a clipped sum private.

`gaussian` is the mechanism of a company that adds its own full noise. `banded` correlates that noise over the
steps of a fixed schedule. `skellam` is for companies that each add a share, of which only the sum is opened;
`skellam_sampler` draws its integers.
"""

from .banded import BandedNoise, BandedStream
from .gaussian import add_gaussian_noise
from .skellam import SkellamNoise, default_scale

__all__ = ["BandedNoise", "BandedStream", "SkellamNoise", "add_gaussian_noise", "default_scale"]
