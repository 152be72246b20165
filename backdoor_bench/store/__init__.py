"""Victims by content (trained once, found ever after); run records."""

from backdoor_bench.store.base import Store, Stored

__all__ = ["Store", "Stored"]
