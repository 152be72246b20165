"""The attacker's own trigger in place of an inverted one: an oracle, for upper bounds only."""

from __future__ import annotations

from torch import nn

from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import InvertedTrigger
from backdoor_bench.stage.view import DefenderView


class KnownTrigger(Stage):
    """Hand on the true trigger, which the defense must declare (``assumes: [trigger]``), without the target label.

    This is what the published numbers of Grad-Prune are made with (its released code), although the paper speaks of
    synthesised triggers.
    """

    def check(self, network: nn.Module, view: DefenderView) -> None:
        _ = view.trigger  # raises where the defense did not declare it

    def run(self, network: nn.Module, view: DefenderView) -> InvertedTrigger:
        return InvertedTrigger(view.trigger, None, report={"oracle": True})
