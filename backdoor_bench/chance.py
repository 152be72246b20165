"""When a network is no working classifier: its ACC is hardly above that of answering one class whatever is shown.

Every constant answer is at chance. Its ASR is 0 or 1 by the class that it names, and says nothing of a backdoor: not
that a victim has one, and not that a defense removed it.
"""

from __future__ import annotations

from collections.abc import Sequence

MARGIN = 0.1
"""A network at chance gets no further than this share of the way from the best constant answer to all right."""


def best_constant(class_sizes: Sequence[int]) -> float:
    """The accuracy of answering the largest class whatever is shown, a fraction."""
    return max(class_sizes) / sum(class_sizes)


def at_chance(acc: float, constant: float) -> bool:
    """Whether an ACC is that of no working classifier.

    Args:
        acc: on the clean test set, a fraction.
        constant: of that set, see :func:`best_constant`.
    """
    return acc <= constant + MARGIN * (1 - constant)
