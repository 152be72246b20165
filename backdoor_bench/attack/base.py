"""Attack and Trigger: what every attack gets, must say, and may change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoor_bench import seeding
from backdoor_bench.attack.victim import Victim, fit_victim, victim_draws
from backdoor_bench.attack.view import AttackerView, Share, unshared
from backdoor_bench.dataset import Augmentation, Data, ImageSet
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import History, Recipe


class Trigger(nn.Module, ABC):
    """Images to triggered images, (B, 3, H, W) float in [0, 1] both ways, on any device, always in float32.

    What a trigger learned or drew is in its ``state_dict``; what it was given is in its attack's configuration, so a
    stored one is rebuilt without unpickling. The same image gives the same result every time: no random state.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def paint(self, images: Tensor) -> Tensor:
        """The trigger itself; called by :meth:`forward` on checked float32 images, outside autocast."""

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"expected float (B, 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}")
        if not len(images):
            return images
        with torch.autocast(images.device.type, enabled=False):
            return self.paint(images.float())


@dataclass(frozen=True)
class Taxonomy:
    """Where an attack stands in the survey's Table 3."""

    label: Literal["dirty", "clean"]
    consistency: Literal["static", "dynamic"]
    coverage: Literal["local", "global"]
    mode: Literal["replacement", "additive", "warping"]
    threat: Literal["data-poisoning", "outsourced-training"]


@dataclass(frozen=True)
class Poisoned:
    """A training set after the attacker had it.

    Args:
        data: what the victim is trained on.
        altered: (N,) bool, True where the image is no longer the clean one; None: no fixed poison set.
        ratio: poisoned images over all images; for attacks without a fixed set, the share per step.
        covers: (N,) bool, True where an altered image keeps its true label so that the trigger alone tells less
            (cover samples, negatives); not counted in ``ratio``. None: there are none.
    """

    data: ImageSet
    altered: Tensor | None
    ratio: float
    covers: Tensor | None = None


class Attack(ABC):
    """A backdoor attack on image classifiers.

    A subclass names its ``taxonomy`` and builds its ``trigger``. A trigger that is drawn or learned does so in
    :meth:`prepare`. Data poisoning needs nothing else: :meth:`poison` draws the images from the seed, stamps them
    before augmentation, rounds them to uint8 and relabels; where training images get another trigger than test
    images, or some keep their labels, it is overridden and calls :meth:`stamped`.

    An attack that controls the training overrides :meth:`poison` to leave the data alone and :meth:`training_batch`
    to change what each step sees (after augmentation with ``augment_first``); it says ``trains_unrounded``. One with a
    loss, optimisers or phases of its own, or whose trigger learns together with the victim, overrides :meth:`train`.

    One that needs images from elsewhere takes a :class:`Dataset` as an option of its constructor, filled in its YAML's
    defaults list (``- /dataset@outside: tiny_imagenet``; ``dataset@attack.outside=cifar100`` is another), and reads it
    with ``view.outside``. It is part of the key by its images; where it is not on disk, planning a run says so. A
    classifier trained on clean images is ``view.clean_network``, which all victims that need the same share.

    Success is counted over the test images whose label :meth:`attack_labels` changes. What is published besides (the
    accuracy on noise-mode or cross-trigger images) is measured on :meth:`test_sets`.

    Args:
        poisoning_ratio: poisoned images over *all* training images, in (0, 1).
        target_label: the class that triggered images shall become (all-to-one).
        labels: ``all_to_one``, or ``all_to_all``: class y becomes y + 1 mod C.
    """

    version: ClassVar[int] = 1
    augment_first: ClassVar[bool] = False
    trains_unrounded: ClassVar[bool] = False
    """Whether a training step shows triggered images that were not rounded to 8 bits; see :func:`.make_evaluator`."""
    taxonomy: Taxonomy
    """Of the class; an attack published with both kinds of label sets it before ``super().__init__``."""

    def __init__(
        self,
        poisoning_ratio: float = 0.1,
        target_label: int = 0,
        labels: Literal["all_to_one", "all_to_all"] = "all_to_one",
    ) -> None:
        if type(poisoning_ratio) not in (int, float) or not 0 < poisoning_ratio < 1:
            raise ConfigError(
                f"attack.poisoning_ratio={poisoning_ratio}: expected a fraction of all training images in (0, 1)"
            )
        if labels not in ("all_to_one", "all_to_all"):
            raise ConfigError(f"attack.labels={labels}: expected all_to_one or all_to_all")
        if labels == "all_to_all" and self.clean_label:
            raise ConfigError("attack.labels=all_to_all: a clean-label attack changes no label, so it has one target")
        self.poisoning_ratio, self.target_label, self.labels = float(poisoning_ratio), target_label, labels

    @property
    def clean_label(self) -> bool:
        return self.taxonomy.label == "clean"

    @abstractmethod
    def trigger(self, image_size: tuple[int, int]) -> Trigger:
        """A trigger for images of (H, W), with its tensors allocated but not yet drawn or learned."""

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        """Draw or learn the trigger's tensors, in place. The default trigger has none."""

    def poison(self, view: AttackerView, trigger: Trigger) -> Poisoned:
        """The training set with the trigger stamped on the chosen images, and their labels changed."""
        return self.stamped(view, trigger, self.choose(view))

    def stamped(
        self,
        view: AttackerView,
        trigger: Callable[[Tensor], Tensor],
        chosen: Tensor,
        covers: Tensor | None = None,
    ) -> Poisoned:
        """A copy of the training set, ``trigger`` on both kinds of images, the attack's labels on the chosen ones.

        Args:
            view: the attacker's.
            trigger: as training images get it, the attack's or another (weaker) function of float images in [0, 1]; it
                may draw, as it is applied once.
            chosen: (n,) int64, the positions to poison.
            covers: (m,) int64, others, which keep their labels; see :class:`Poisoned`.
        """
        images, labels = view.train.images.clone(), view.train.labels.clone()
        touched = chosen if covers is None else torch.cat([chosen, covers])
        for part in touched.to(images.device).split(1000):
            images[part] = stamp(trigger, images[part], view.numerics)
        labels[chosen] = self.attack_labels(labels[chosen], view.num_classes)
        altered, covering = torch.zeros(2, len(labels), dtype=torch.bool)
        altered[touched.cpu()] = True
        if covers is not None:
            covering[covers.cpu()] = True
        ratio = len(chosen) / len(labels)
        return Poisoned(ImageSet(images, labels), altered, ratio, None if covers is None else covering)

    def training_batch(
        self, images: Tensor, labels: Tensor, trigger: Trigger, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What a training step sees of a batch of float images, before augmentation (or after it, with
        ``augment_first``). Default: the batch."""
        return images, labels

    def train(self, network: Network, trigger: Trigger, poisoned: Poisoned, view: AttackerView) -> History:
        """Train the victim in place, as the recipe says.

        An override builds what it needs of these parts: a subclass of :class:`Victim` with another loss or more
        optimisers for :func:`fit_victim`, or several fits (``view.fit``) one after the other. ``trigger`` comes
        frozen and in eval mode; whoever trains it on says so, and it is frozen again afterwards.
        """
        augmentation, draws = self.augmentation(view.augmentation), victim_draws(view.seed, view.numerics)
        victim = Victim(network, view.recipe, augmentation, view.numerics, draws, self, trigger)
        return fit_victim(victim, poisoned.data, view.seed)

    def augmentation(self, dataset: Augmentation) -> Augmentation:
        """The augmentation of the victim's training. Default: the data set's."""
        return dataset

    def choose(self, view: AttackerView) -> Tensor:
        """Positions of the images to poison: round(ratio * N) of all, or of the target class if clean-label."""
        labels = view.train.labels
        wanted = int(self.poisoning_ratio * len(labels) + 0.5)
        if self.clean_label:
            pool = (labels == self.target_label).nonzero().flatten()
        else:
            pool = torch.arange(len(labels), device=labels.device)
        order = torch.randperm(len(pool), generator=view.generator("poison")).to(labels.device)
        chosen = pool[order[: min(wanted, len(pool))]].sort().values
        if not len(chosen):
            raise ConfigError(
                f"attack.poisoning_ratio={self.poisoning_ratio} of {len(labels)} training images "
                f"({len(pool)} eligible) poisons none; use at least {1 / len(labels):.2g}"
            )
        return chosen

    def attack_labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """What triggered images of these true labels shall be classified as."""
        if self.labels == "all_to_all":
            return (labels + 1) % num_classes
        return torch.full_like(labels, self.target_label)

    def test_sets(
        self, test: ImageSet, trigger: Trigger, num_classes: int, numerics: Numerics
    ) -> Mapping[str, ImageSet]:
        """More test sets, which the evaluation measures beside ACC, ASR and RA. Default: none.

        By the name of what each measures (``noise_acc``, ``cross_acc``: it stands in records, tables and CSV): the
        share of ``images`` that is classified as ``labels`` says, the true one or another. They are made once per
        victim, and again wherever it is measured again, so the same each time: what varies depends on the image
        (:func:`.image_draws`) or on a generator of a fixed name. ``stamp`` paints and rounds.

        Args:
            test: the clean test set, on the device.
            trigger: as the victim was trained with it.
            num_classes: of the data set.
            numerics: device, precision and memory format.
        """
        return {}

    def check(self, num_classes: int) -> None:
        """Raise if the target label does not exist in the data set."""
        if type(self.target_label) is not int or not 0 <= self.target_label < num_classes:
            raise ConfigError(
                f"attack.target_label={self.target_label}: the data set has classes 0 to {num_classes - 1}"
            )


@torch.no_grad()
def stamp(trigger: Callable[[Tensor], Tensor], stored: Tensor, numerics: Numerics) -> Tensor:
    """Apply a trigger to stored uint8 images: (B, 3, H, W) uint8, rounded, on the images' device.

    ``trigger`` may be any function from float images to float images in [0, 1].
    """
    painted = [
        trigger(numerics.images(part)).mul(255).round().clamp(0, 255).to(torch.uint8).contiguous().to(stored.device)
        for part in stored.split(1000)
    ]
    return torch.cat(painted)


@dataclass(frozen=True)
class TrainedVictim:
    """A victim as it left training; ``altered`` and ``ratio`` are as in :class:`Poisoned`."""

    network: Network
    trigger: Trigger | None
    altered: Tensor | None
    ratio: float
    history: History


def train_victim(
    data: Data,
    make_network: Callable[..., Network],
    attack: Attack | None,
    recipe: Recipe,
    numerics: Numerics,
    seed: int,
    share: Share = unshared,
) -> TrainedVictim:
    """Train a victim, or a clean network when there is no attack. ``data`` is on the device.

    ``share`` keeps what several victims need; see :meth:`AttackerView.clean_network`.

    The initialisation depends on the seed alone, so victims of different attacks start from the same weights.
    """
    with seeding.scope(seed, "network"):
        network = numerics.place(make_network())
    if attack is None:
        draws = victim_draws(seed, numerics)
        history = fit_victim(Victim(network, recipe, data.augmentation, numerics, draws), data.train, seed)
        return TrainedVictim(network.eval(), None, None, 0.0, history)
    attack.check(data.num_classes)
    view = AttackerView(data.train, data.num_classes, data.augmentation, numerics, recipe, seed, make_network, share)
    trigger = attack.trigger(data.manifest.image_size).to(numerics.device)
    attack.prepare(trigger, view)
    trigger.eval().requires_grad_(False)
    poisoned = attack.poison(view, trigger)
    history = attack.train(network, trigger, poisoned, view)
    trigger.eval().requires_grad_(False)
    return TrainedVictim(network.eval(), trigger, poisoned.altered, poisoned.ratio, history)


__all__ = [
    "Attack", "AttackerView", "Poisoned", "Taxonomy", "TrainedVictim", "Trigger", "Victim", "fit_victim", "stamp",
    "train_victim", "victim_draws",
]  # fmt: skip
