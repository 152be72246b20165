"""What all contenders share: data, network, recipe, numerics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backdoor_bench import config as configuration
from backdoor_bench.dataset import Augmentation, Data, ImageSet
from backdoor_bench.dataset.base import describe
from backdoor_bench.model.preact_resnet18 import PreActResNet18
from backdoor_bench.numerics import Numerics
from backdoor_bench.training import Recipe

PAD = 4


@dataclass(frozen=True)
class Setting:
    """``data`` is on the device; ``workers`` are the DataLoader processes of the plain loops."""

    data: Data
    width: int
    recipe: Recipe
    numerics: Numerics
    eval_batch_size: int
    workers: int

    def network(self, **options: Any) -> PreActResNet18:
        return PreActResNet18(**{"num_classes": self.data.num_classes, "width": self.width, **options})

    def take(self, steps: int) -> tuple[Data, int]:
        """Training images for ``steps`` whole batches, and how many passes over them that makes."""
        per_epoch = max(1, min(steps, len(self.data.train) // self.recipe.batch_size))
        index = torch.arange(per_epoch * self.recipe.batch_size, device=self.data.train.labels.device)
        return replace(self.data, train=self.data.train[index]), max(1, round(steps / per_epoch))

    def test(self, steps: int) -> ImageSet:
        """Test images for ``steps`` whole batches, again from the first after the last."""
        count = torch.arange(steps * self.eval_batch_size, device=self.data.test.labels.device)
        return self.data.test[count % len(self.data.test)]


def make_setting(data_dir: Path, width: int, numerics: Numerics, workers: int) -> Setting:
    """CIFAR-10's recipe without its schedule, which moves once an epoch."""
    config = composed("dataset=cifar10", f"data_dir={data_dir}")
    recipe = replace(configuration.make_recipe(config["recipe"]), scheduler=None)
    data = load_data(data_dir, config["dataset"]).to(numerics.device)
    return Setting(data, width, recipe, numerics, config["trainer"]["eval_batch_size"], workers)


def load_data(data_dir: Path, cifar10: dict[str, Any]) -> Data:
    """CIFAR-10 where its cache is, else random images of its size; the manifest's variant says which."""
    if list(data_dir.glob(".cache/cifar10*.safetensors")):
        loaded: Data = configuration.make(cifar10).load()
        return loaded
    draws = torch.Generator().manual_seed(0)

    def make(count: int) -> ImageSet:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draws)
        return ImageSet(images, torch.arange(count) % 10)

    train, test = make(50_000), make(10_000)
    manifest = describe("random", "random images of CIFAR-10's size", tuple(map(str, range(10))), train, test)
    return Data(train, test, manifest, Augmentation(crop_padding=PAD, flip=True))


def composed(*overrides: str) -> dict[str, Any]:
    """The project's own configuration."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(configuration.directory()), version_base="1.3"):
        return configuration.plain(compose("config", list(overrides)))
