"""The steps that defenses are made of: base.py holds Stage and TrainingStage; then one file per step."""

from backdoor_bench.stage.base import Stage, TrainingStage
from backdoor_bench.stage.output import Bounds, InvertedTrigger, Mask, Output, Reference, Scores
from backdoor_bench.stage.view import DefenderView

__all__ = [
    "Bounds", "DefenderView", "InvertedTrigger", "Mask", "Output", "Reference", "Scores", "Stage", "TrainingStage",
]  # fmt: skip
