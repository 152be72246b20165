"""What an attacker has: the training set, and the means to train networks of his own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule

from backdoor_bench import seeding, training
from backdoor_bench.attack.victim import Victim
from backdoor_bench.dataset import Augmentation, Batches, Dataset, ImageSet
from backdoor_bench.dataset.base import fingerprint
from backdoor_bench.dataset.outside import outside
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import History, Recipe

Share = Callable[[Network, Mapping[str, Any], Callable[[], object]], None]
"""``share(network, identity, train)`` gives ``network`` the weights of this identity: found or trained."""


def unshared(network: Network, identity: Mapping[str, Any], train: Callable[[], object]) -> None:
    """Where there is no store."""
    train()


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
        share: where clean networks are kept; see :meth:`clean_network`.
    """

    train: ImageSet
    num_classes: int
    augmentation: Augmentation
    numerics: Numerics
    recipe: Recipe
    seed: int
    make_network: Callable[..., Network]
    share: Share = unshared

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose, the same in every run with this seed."""
        return seeding.generator(self.seed, "attack", name, device=device)

    def new_network(self, name: str, **overrides: Any) -> Network:
        """A fresh network of the victim's architecture, its weights drawn for ``name``.

        ``overrides`` are options of the network, e.g. another ``width`` or ``num_classes``.
        """
        with seeding.scope(self.seed, "attack", name):
            return self.numerics.place(self.make_network(**overrides))

    def outside(self, dataset: Dataset) -> ImageSet:
        """The training images of another data set, on the device, resized to this one's size; labels are its own."""
        return outside(dataset, self.train, self.numerics.device)

    def fit(
        self, module: LightningModule, epochs: int, batch_size: int, title: str, data: ImageSet | None = None
    ) -> History:
        """Train a network of the attacker's own on uint8 batches of ``data``, or of the whole training set."""
        batches = Batches(self.train if data is None else data, batch_size, self.generator(title), drop_last=True)
        with seeding.scope(self.seed, "attack", title, device=self.numerics.device):
            return training.fit(module, batches, epochs, self.numerics, title)

    def clean_network(
        self,
        title: str = "clean network",
        recipe: Recipe | None = None,
        augmentation: Augmentation | None = None,
        data: ImageSet | None = None,
        **overrides: Any,
    ) -> Network:
        """A classifier of the attacker's own, trained on clean images; in eval mode, with frozen weights.

        Trained once: the store keeps it by content (title, recipe, augmentation, images, network, seed), for other
        poisoning ratios, targets and attacks that ask for the same. It shares nothing with the victim but the data:
        other first weights, another order. Ask before other work: where another process is training it, a sweep lets
        go of the victim and comes back.

        Args:
            title: on the progress bar, and the name of its random numbers; one of your own only for a network that no
                other attack would want.
            recipe: None: the victim's.
            augmentation: None: the data set's.
            data: what it is trained on; None: the training set.
            overrides: as in :meth:`new_network`.
        """
        recipe = self.recipe if recipe is None else recipe
        augmentation = self.augmentation if augmentation is None else augmentation
        network = self.new_network(title, **overrides).train()
        identity = {
            "title": title,
            "recipe": recipe.describe(),
            "augmentation": {"_target_": f"{Augmentation.__module__}.Augmentation", **asdict(augmentation)},
            "data": None if data is None else fingerprint(data),
            "overrides": overrides,
        }

        def train() -> History:
            draws = self.generator(f"{title}: draws", self.numerics.device)
            module = Victim(network, recipe, augmentation, self.numerics, draws)
            return self.fit(module, recipe.epochs, recipe.batch_size, title, data)

        self.share(network, identity, train)
        return network.eval().requires_grad_(False)
