"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``, ``12,000 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
