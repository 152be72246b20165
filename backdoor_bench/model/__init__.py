"""Networks by name; pixel normalisation is their first layer, so everything outside works in [0, 1]."""

from backdoor_bench.model.base import Network, Normalize, Resize, architecture

__all__ = ["Network", "Normalize", "Resize", "architecture"]
