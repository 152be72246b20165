"""Networks as torchvision publishes them: no change for small images, which is how BackdoorBench builds them."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torchvision.models import get_model, list_models

from backdoor_bench.errors import unknown
from backdoor_bench.model.base import IDENTITY, Network


class TorchvisionNetwork(Network):
    """torchvision's network ``builder`` with a head for ``num_classes``.

    Args:
        name: as records call it.
        num_classes: logits.
        mean, std: per-channel statistics of the pixels.
        builder: torchvision's function, where its name is another; null: ``name``.
        resize: side in pixels that images are resized to inside the network; null: as they come.

    Raises:
        ConfigError: torchvision has no such classifier.
    """

    resizable = True
    aliases = (  # as torchvision's own files have them
        (r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2"),
        (r"\bmlp\.linear_1\.", "mlp.0."),
        (r"\bmlp\.linear_2\.", "mlp.3."),
    )

    def __init__(
        self,
        name: str,
        num_classes: int,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
        builder: str | None = None,
        resize: int | None = None,
    ) -> None:
        builder = builder or name
        known = list_models(torchvision.models)
        if builder not in known:
            raise unknown("torchvision network", builder, known)
        super().__init__(get_model(builder, weights=None, num_classes=num_classes), num_classes, mean, std, resize)
        self.name = name
