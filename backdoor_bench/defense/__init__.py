"""Defenses: a Defense is a dict of stages; what it may see is a DefenderView."""

from backdoor_bench.defense.base import Defense, StageResult
from backdoor_bench.stage.view import DefenderView

__all__ = ["DefenderView", "Defense", "StageResult"]
