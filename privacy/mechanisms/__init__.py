"""What is added to a clipped sum to make its release private.

`gaussian` is the mechanism of a company that adds its own full noise.
"""

from .gaussian import add_gaussian_noise

__all__ = ["add_gaussian_noise"]
