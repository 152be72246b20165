"""CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from typing import Any

from backdoor_bench.dataset.cifar import Cifar

CLASSES = tuple(  # one per line as a literal would fill two screens
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)


class Cifar100(Cifar):
    """A hundred (fine) classes. Torchvision's files are ``DATA_DIR/cifar-100-python``."""

    version = 1
    title = "CIFAR-100"
    classes = CLASSES
    folder = "cifar-100-python"
    archive = "cifar-100-python.tar.gz"

    @staticmethod
    def torchvision_class() -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100
