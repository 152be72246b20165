"""What one stage leaves to the next: small frozen dataclasses, kept by the defense under the stage's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from backdoor_bench.attack.base import Trigger


@dataclass(frozen=True)
class Output:
    """Base of all outputs. ``report`` holds plain numbers and words for the record."""

    report: Mapping[str, float | int | str | bool | None] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Scores(Output):
    """A number per unit. ``values``: module or parameter name to (units,) float. What is high is the stage's to say."""

    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Mask(Output):
    """Which entries of the network's parameters are pruned.

    ``pruned``: parameter name to a bool tensor of the parameter's shape, True where pruned. Parameters that are not
    named are untouched.
    """

    pruned: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        return sum(int(entries.sum()) for entries in self.pruned.values())


@dataclass(frozen=True)
class Bounds(Output):
    """Upper bounds of activations. ``values``: activation module's name to a bound of its output's shape, no batch."""

    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class InvertedTrigger(Output):
    """A map from clean to presumably triggered images, found without the attacker; ``label``: the suspected target."""

    trigger: Trigger
    label: int | None


@dataclass(frozen=True)
class Reference(Output):
    """A second network: a teacher, a throw-away copy, an unlearned twin."""

    network: nn.Module
