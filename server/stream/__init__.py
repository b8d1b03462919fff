"""The data plane's coordinator side: an aggregation service that companies dial, as a Flower Grid.

`company_stream` is one company's stream, `service` the gRPC server that holds all streams, `grid` the Flower Grid
over it, `settings` the coordinator's configuration, `flower_fallback` falls back to Flower's own messages.
"""

from .grid import StreamGrid
from .service import AggregationService
from .settings import ServiceSettings

__all__ = ["AggregationService", "ServiceSettings", "StreamGrid"]
