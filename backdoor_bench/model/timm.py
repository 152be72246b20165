"""Any network of timm: ``model=timm:NAME``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from backdoor_bench.errors import ConfigError
from backdoor_bench.model.base import IDENTITY, Network

PREFIX = "timm:"


class TimmNetwork(Network):
    """timm's network with a head for ``num_classes``, from random weights.

    Args:
        name: ``timm:NAME``, with or without the tag of its published weights (``timm:resnet18.a1_in1k``).
        num_classes: logits.
        mean, std: per-channel statistics of the pixels.
        resize: side in pixels that images are resized to inside the network; null: as they come, or the network's own
            size where it works at no other.
        options: further arguments of timm's network, e.g. ``{img_size: 32, patch_size: 4}`` of a ViT; with
            ``img_size`` nothing is resized unless ``resize`` says so.

    Raises:
        ConfigError: timm is not installed, or has no such network, or the network no such option.
    """

    resizable = True

    def __init__(
        self,
        name: str,
        num_classes: int,
        mean: Sequence[float] = IDENTITY[0],
        std: Sequence[float] = IDENTITY[1],
        resize: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        timm, options = require(name), dict(options or {})
        own = inspect.signature(timm.create_model).parameters.keys() | {"num_classes", "features_only"}
        if own & options.keys():  # some of them name files and addresses, and a stored configuration is somebody's
            raise ConfigError(
                f"model.options={options}: expected arguments of the network, such as img_size; "
                f"{', '.join(sorted(own & options.keys()))} is none of them"
            )
        try:
            backbone = timm.create_model(name.removeprefix(PREFIX), num_classes=num_classes, **options)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # a tag or options that it cannot have
            said = f" with model.options={options}" if options else ""
            raise ConfigError(f"model={name}{said}: {error}") from None
        published = backbone.pretrained_cfg
        if resize is None and "img_size" not in options and published.get("fixed_input_size"):
            resize = int(published["input_size"][-1])
        super().__init__(backbone, num_classes, mean, std, resize)
        self.name = name


def require(name: str) -> ModuleType:
    """timm, imported now, having a network of this name.

    Raises:
        ConfigError: timm is not installed, ``name`` has no ``timm:`` before it, or timm does not have it.
    """
    if not name.startswith(PREFIX):
        raise ConfigError(f"model.name={name}: expected timm:NAME")
    try:
        import timm  # seconds
    except ImportError as error:
        raise ConfigError(
            f"model={name} needs timm ({error}); install it with pip install 'backdoor_bench[timm]'"
        ) from None
    wanted, known = name.removeprefix(PREFIX), timm.list_models()
    if not timm.is_model(wanted):
        close = difflib.get_close_matches(wanted.split(".")[0], known, n=3, cutoff=0.5)
        raise ConfigError(
            f"unknown timm network '{wanted}'."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
            + f" timm.list_models() names all {len(known):,}."
        )
    return timm
