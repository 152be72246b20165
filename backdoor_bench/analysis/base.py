"""What every analysis gives: numbers to write, and a picture of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANALYSES: Mapping[str, str] = {
    "triggers": "what the trigger does to images: clean, triggered, residual",
    "bn_shift": "BatchNorm's mean, variance, gamma and beta: clean, backdoored, purified (UniBP, Figs. 3 and 9)",
    "tsne": "penultimate features in the plane, triggered ones marked (UniBP, Fig. 1)",
    "activations": "distributions of the most trigger-sensitive neurons (UNIT, Fig. 2)",
    "tac": "trigger-activated change per neuron, and which scores find it (TSBD, Fig. 4)",
    "unlearning": "neuron weight change under clean and under poison unlearning (TSBD, Fig. 1)",
    "margin": "the maximum-margin statistic of each class (MM-BD)",
}
"""Names and what they show; each is the module of that name in this folder, with a function ``analyse(study)``."""


class Finding(ABC):
    """What an analysis found.

    ``sees_trigger``: whether triggered images or the target label were used, which no blind defense has.
    """

    sees_trigger: ClassVar[bool] = True

    @abstractmethod
    def summary(self) -> Mapping[str, Any]:
        """The few numbers that matter, as plain JSON values."""

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The numbers behind the picture, as rows of a CSV with the same columns."""

    @abstractmethod
    def draw(self) -> Figure:
        """The picture; called inside :func:`style.printed`."""

    def notes(self) -> Sequence[str]:
        """Sentences that the picture's reader needs: what was measured, and how."""
        return []
