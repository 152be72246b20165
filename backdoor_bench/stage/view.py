"""What a defender has: neither test nor poisoned data; the trigger and the target label only where declared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from backdoor_bench import seeding
from backdoor_bench.attack.base import Trigger
from backdoor_bench.dataset import Augmentation, Dataset, ImageSet
from backdoor_bench.dataset.outside import outside
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.numerics import Numerics

T = TypeVar("T")


@dataclass(frozen=True)
class DefenderView:
    """The defender's data and means.

    Args:
        train: clean training images and labels, on the device.
        validation: clean held-out images and labels, on the device; empty with ``use_validation=train``.
        num_classes: classes of the suspect network.
        augmentation: the data set's training augmentation.
        numerics: device, precision, memory format.
        repetition: seeds every generator of the defense.
        clean_ratio: the clean data's share of the training set, where the defender was told it.
        stage: the running stage's name, so that each stage draws its own numbers.
        known_trigger: the attacker's trigger, only for a defense whose config says ``assumes: [trigger]``.
        known_target: the attacker's target label, only for one that says ``assumes: [target_label]``.
    """

    train: ImageSet
    validation: ImageSet
    num_classes: int
    augmentation: Augmentation
    numerics: Numerics
    repetition: int = 0
    clean_ratio: float | None = None
    stage: str = ""
    known_trigger: Trigger | None = None
    known_target: int | None = None

    @property
    def device(self) -> torch.device:
        return self.numerics.device

    @property
    def example(self) -> Tensor:
        """Two grey images of the data's size, (2, 3, H, W) float, to look at a network with; see :mod:`anatomy`."""
        images = self.train.images
        return self.numerics.images(images.new_full((2, *images.shape[1:]), 127))

    @property
    def trigger(self) -> Trigger:
        """The attacker's trigger, where the defense declared that it assumes one."""
        return self._known(self.known_trigger, "trigger")

    @property
    def target_label(self) -> int:
        """The class that the attacker wants, where the defense declared that it assumes it."""
        return self._known(self.known_target, "target_label")

    def _known(self, what: T | None, name: str) -> T:
        if what is None:
            raise IncompatibleError(
                f"stage '{self.stage}' uses the attacker's {name.replace('_', ' ')}; its defense must say so "
                f"(assumes: [{name}]) and the victim must have one (+attack=NAME)"
            )
        return what

    def outside(self, dataset: Dataset) -> ImageSet:
        """The training images of another data set, on the device, resized to this one's size; labels are its own.

        A stage takes the :class:`Dataset` as an option, as attacks do; see :class:`Attack`. Planning refuses the run's
        own, so that no test image comes this way.
        """
        return outside(dataset, self.train, self.device)

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose of the running stage."""
        return seeding.generator("defense", self.repetition, self.stage, name, device=device)

    def for_stage(self, name: str) -> DefenderView:
        return replace(self, stage=name)
