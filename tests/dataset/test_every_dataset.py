"""What holds for every data set on the command line; a new leaf of conf/dataset is tested without being named here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from torch import nn

from backdoor_bench import config as configuration
from backdoor_bench.dataset import Augmentation, Dataset
from backdoor_bench.dataset.own import OwnDataset
from backdoor_bench.errors import ConfigError

Compose = Callable[..., dict[str, Any]]
NAMES = sorted(path.stem for path in (configuration.directory() / "dataset").glob("*.yaml"))
OWN = ("image_folder", "npz")

# shared/methods/protocol.md, section 1: mean, std, flip; and section 3: epochs, schedule.
PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), True, 100, "CosineAnnealingLR"),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), False, 100, "CosineAnnealingLR"),
    "gtsrb": ((0, 0, 0), (1, 1, 1), False, 50, "CosineAnnealingLR"),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), False, 200, "ReduceLROnPlateau"),
}


def options(name: str, tmp_path: Path) -> list[str]:
    root = [f"dataset.root={tmp_path}"] if name in OWN else []
    return [f"dataset={name}", f"data_dir={tmp_path}", *root]


@pytest.mark.parametrize("name", NAMES)
def test_it_composes_and_is_made(tmp_path: Path, compose: Compose, name: str) -> None:
    config = compose(*options(name, tmp_path), "+attack=badnet", "+defense=ft", lengths={})
    made = configuration.make(config["dataset"])
    assert isinstance(made, Dataset)
    assert made.name == config["dataset"]["name"] == name
    assert isinstance(vars(type(made)).get("version"), int), "each class says its own version"
    assert len(made.mean) == len(made.std) == 3
    assert isinstance(made.augmentation, Augmentation)
    recipe = configuration.make_recipe(config["recipe"])
    assert recipe.scheduler is not None
    recipe.scheduler(recipe.optimizer(nn.Linear(1, 1).parameters()), **_steps(name))


def _steps(name: str) -> dict[str, int]:
    return {"total_steps": 1} if name == "digits" else {}  # its one-cycle is told its length


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_statistics_and_recipe(tmp_path: Path, name: str) -> None:
    mean, std, flip, epochs, schedule = PUBLISHED[name]
    with hydra.initialize_config_dir(str(configuration.directory()), version_base="1.3"):
        config = configuration.plain(hydra.compose("config", options(name, tmp_path)))
    dataset, recipe = config["dataset"], config["recipe"]
    assert (tuple(dataset["mean"]), tuple(dataset["std"])) == (mean, std)
    assert configuration.make(dataset["augmentation"]) == Augmentation(crop_padding=4, flip=flip)
    assert recipe["scheduler"]["_target_"].endswith(f".{schedule}")
    numbers = {key: recipe[key] for key in ("width", "epochs", "batch_size", "drop_last")}
    assert numbers == {"width": 64, "epochs": epochs, "batch_size": 128, "drop_last": True}
    settings = {key: recipe["optimizer"][key] for key in ("lr", "momentum", "weight_decay")}
    assert settings == {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def test_tiny_imagenet_waits_for_a_plateau(tmp_path: Path, compose: Compose) -> None:
    schedule = compose(*options("tiny_imagenet", tmp_path))["recipe"]["scheduler"]
    assert (schedule["factor"], schedule["patience"]) == (0.1, 10)


@pytest.mark.parametrize("name", OWN)
def test_your_own_images_need_a_root(tmp_path: Path, compose: Compose, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"dataset={name} needs .* give dataset.root="):
        configuration.make(compose(f"dataset={name}")["dataset"])
    with pytest.raises(ConfigError, match="test_share=2"):
        configuration.make(compose(*options(name, tmp_path), "dataset.test_share=2")["dataset"])
    assert issubclass(type(configuration.make(compose(*options(name, tmp_path))["dataset"])), OwnDataset)
