"""The victim's training on what the attacker made of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from backdoor_bench import seeding, training
from backdoor_bench.dataset import Augmentation, Batches, ImageSet
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import History, Recipe

if TYPE_CHECKING:
    from backdoor_bench.attack.base import Attack, Trigger


class Victim(LightningModule):
    """A network in training: the attack's batch, then augmentation (or the other way round), then CE.

    An attack with a loss or optimisers of its own trains a subclass; see :meth:`Attack.train`. Where the trigger learns
    by the same backward, its optimiser, made in :meth:`configure_optimizers`, steps in ``on_train_batch_end``, and the
    network's keeps the recipe's schedule.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        augmentation: Augmentation,
        numerics: Numerics,
        generator: torch.Generator,
        attack: Attack | None = None,
        trigger: Trigger | None = None,
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.augmentation, self.numerics = network, recipe, augmentation, numerics
        self.attack, self.generator = attack, generator
        # Not a submodule: what the attacker learned is not the victim's to train, nor its mode Lightning's to set.
        self._trigger = (trigger,)

    @property
    def trigger(self) -> Trigger | None:
        """The attack's, if there is one."""
        return self._trigger[0]

    def seen(self, stored: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given of a batch of uint8 images: float images in [0, 1], and labels."""
        images = self.numerics.images(stored)
        attack, trigger = self.attack, self.trigger
        if attack is None or trigger is None:
            return self.augmentation(images, self.generator), labels
        if attack.augment_first:
            images = self.augmentation(images, self.generator)
        images, labels = attack.training_batch(images, labels, trigger, self.network.num_classes, self.generator)
        return (images if attack.augment_first else self.augmentation(images, self.generator)), labels

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = self.seen(*batch)
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> Any:
        return training.optimisers(self, self.network.parameters(), self.recipe.optimizer, self.recipe.scheduler)


def victim_draws(seed: int, numerics: Numerics) -> torch.Generator:
    """The generator of a victim's augmentation and of its attack's :meth:`training_batch`."""
    return seeding.generator(seed, "victim", "augmentation", device=numerics.device)


def fit_victim(victim: Victim, data: ImageSet, seed: int) -> History:
    """Train as the victim's recipe says. The order of the images depends on the seed alone, not on the attack."""
    order = seeding.generator(seed, "victim", "order")
    batches = Batches(data, victim.recipe.batch_size, order, victim.recipe.drop_last)
    with seeding.scope(seed, "victim", device=victim.numerics.device):
        victim.network.train()
        return training.fit(victim, batches, victim.recipe.epochs, victim.numerics, "train the victim")
