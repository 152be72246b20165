"""Victims by content (trained once, found ever after); run records."""

from backdoor_bench.store.base import RECORD_FORMAT, Store, Stored

__all__ = ["RECORD_FORMAT", "Store", "Stored"]
