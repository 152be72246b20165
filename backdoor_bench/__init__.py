"""Attacks and defenses on image classifiers: train a victim, purify it, measure both, keep the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdoor_bench.api import Purified, load_purified, purify

__all__ = ["Purified", "load_purified", "purify"]


def __getattr__(name: str) -> Any:
    """The functions for people with their own model, imported when they are asked for: torch takes seconds."""
    if name in __all__:
        from backdoor_bench import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
