"""What an attacker has: the training set, and the means to train networks of his own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule

from backdoor_bench import seeding, training
from backdoor_bench.attack.victim import Victim
from backdoor_bench.dataset import Augmentation, Batches, ImageSet
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import History, Recipe


@dataclass(frozen=True)
class AttackerView:
    """What the attacker has: the whole training set, its labels, and the means to train networks.

    Args:
        train: the training set, on the device.
        num_classes: of the data set.
        augmentation: the data set's.
        numerics: device, precision and memory format.
        recipe: how the victim is trained.
        seed: the victim's.
        make_network: makes a fresh network of the victim's architecture; see :meth:`new_network`.
    """

    train: ImageSet
    num_classes: int
    augmentation: Augmentation
    numerics: Numerics
    recipe: Recipe
    seed: int
    make_network: Callable[..., Network]

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose, the same in every run with this seed."""
        return seeding.generator(self.seed, "attack", name, device=device)

    def new_network(self, name: str, **overrides: Any) -> Network:
        """A fresh network of the victim's architecture, its weights drawn for ``name``.

        ``overrides`` are options of the network, e.g. another ``width`` or ``num_classes``.
        """
        with seeding.scope(self.seed, "attack", name):
            return self.numerics.place(self.make_network(**overrides))

    def fit(
        self, module: LightningModule, epochs: int, batch_size: int, title: str, data: ImageSet | None = None
    ) -> History:
        """Train a network of the attacker's own on uint8 batches of ``data``, or of the whole training set."""
        batches = Batches(self.train if data is None else data, batch_size, self.generator(title), drop_last=True)
        with seeding.scope(self.seed, "attack", title, device=self.numerics.device):
            return training.fit(module, batches, epochs, self.numerics, title)

    def clean_network(
        self,
        title: str,
        recipe: Recipe | None = None,
        augmentation: Augmentation | None = None,
        data: ImageSet | None = None,
        **overrides: Any,
    ) -> Network:
        """A classifier of the attacker's own, trained on clean images; in eval mode, with frozen weights.

        Args:
            title: what it is for; on the progress bar, and the name of its random numbers.
            recipe: None: the victim's.
            augmentation: None: the data set's.
            data: what it is trained on; None: the training set.
            overrides: as in :meth:`new_network`.
        """
        recipe = self.recipe if recipe is None else recipe
        augmentation = self.augmentation if augmentation is None else augmentation
        network = self.new_network(title, **overrides).train()
        draws = self.generator(f"{title}: draws", self.numerics.device)
        module = Victim(network, recipe, augmentation, self.numerics, draws)
        self.fit(module, recipe.epochs, recipe.batch_size, title, data)
        return network.eval().requires_grad_(False)
