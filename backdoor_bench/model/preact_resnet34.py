"""PreAct-ResNet34 for small images (He et al. 2016, arXiv:1603.05027), as the benchmarks build it."""

from __future__ import annotations

from backdoor_bench.model.preact_resnet18 import PreActResNet18


class PreActResNet34(PreActResNet18):
    """PreAct-ResNet18 with blocks [3, 4, 6, 3].

    21,279,306 parameters at the published ``width=64`` with 10 classes; 32 BN layers.
    """

    published = (3, 4, 6, 3)
