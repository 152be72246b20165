"""The weights that a training starts from: random ones, torchvision's published ones, or a file's.

A stored network is rebuilt without them: they are options of a model's configuration, not of its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_bench import progress
from backdoor_bench.errors import ConfigError, unknown
from backdoor_bench.model.base import Network, architecture
from backdoor_bench.suspect.fit import fit
from backdoor_bench.suspect.read import read_weights, sha256_of

OPTIONS = ("pretrained", "weights", "download")
PUBLISHED = "IMAGENET1K_V1"
"""What ``pretrained=true`` means: torchvision's first ImageNet weights, which the field's older papers used too."""


@dataclass(frozen=True)
class Start:
    """A file that a training starts from.

    Args:
        asked: the option that asks for it.
        path: where it is, or belongs.
        digest: the sha256 of its content in hexadecimal, or the first eight digits, which published names carry.
        url: where it can be had.
    """

    asked: str
    path: Path
    digest: str
    url: str | None = None


def constructor(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration without what it starts from: what builds the architecture."""
    return {name: value for name, value in node.items() if name not in OPTIONS}


def hashed(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's configuration determines a victim: the architecture, and its first weights by content.

    Options that are null say nothing.
    """
    start = find(node)
    said = {name: value for name, value in constructor(node).items() if value is not None}
    return said if start is None else {**said, "weights_sha256": start.digest}


def find(node: Mapping[str, Any]) -> Start | None:
    """What a training of this model starts from; None: random weights. ``weights`` takes precedence.

    Raises:
        ConfigError: the file of ``weights`` is not there, or ``pretrained`` names weights that do not exist.
    """
    pretrained, weights = node.get("pretrained"), node.get("weights")
    if weights is not None:
        path = Path(str(weights)).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"model.weights={weights}: no such file (looked for {path})")
        stat = path.stat()
        return Start(f"model.weights={weights}", path, _sha256(path, stat.st_size, stat.st_mtime_ns))
    return _published(node, pretrained) if pretrained else None


def load(network: Network, node: Mapping[str, Any]) -> None:
    """Give ``network`` the weights that its configuration starts from; without any, leave those that it was made with.

    A head for another number of classes keeps those too, and that is said: random ones, or zeros in a ViT.

    Raises:
        ConfigError: the file is not there, or is not what it should be.
        IncompatibleError: it does not fit the network; what does not, by name and shape.
        UntrustedError: it holds no plain weights; nothing in it was executed.
    """
    start = find(node)
    if start is None:
        return
    _fetch(start, bool(node.get("download")))
    found = read_weights(start.path)
    if not found.sha256.startswith(start.digest):
        raise ConfigError(
            f"{start.asked}: the sha256 of {start.path} is {found.sha256}, expected {start.digest}: it is damaged or "
            "another file; delete it and fetch it again"
        )
    tensors, own, name = network.own_names(found.tensors), network.state_dict(), architecture(node)
    head = _other_head(own, tensors, network.num_classes)
    if head:
        made_with = "random weights" if any(own[key].any() for key in head) else "zeros"
        progress.say(
            f"{start.asked}: {start.path.name} has {len(tensors[head[0]]):,} classes, {name} here "
            f"{network.num_classes:,}; its head ({', '.join(head)}) starts from {made_with}"
        )
        tensors |= {key: own[key] for key in head}
    fit(network, tensors, f"{start.asked} ({start.path})")


def _published(node: Mapping[str, Any], pretrained: Any) -> Start:
    from torchvision.models import get_model_weights

    builder, asked = node.get("builder") or architecture(node), f"model.pretrained={str(pretrained).lower()}"
    try:
        known = get_model_weights(builder).__members__
    except ValueError:
        raise ConfigError(
            f"{asked}: torchvision publishes no weights of {builder}; give a file with model.weights=FILE"
        ) from None
    chosen = PUBLISHED if pretrained is True else str(pretrained)
    if chosen not in known:
        raise unknown(f"weights of {builder}", chosen, known)
    url = known[chosen].url
    filename = url.rsplit("/", 1)[-1]
    digest = filename.rsplit(".", 1)[0].rsplit("-", 1)[-1]
    return Start(asked, Path(torch.hub.get_dir()) / "checkpoints" / filename, digest, url)


def _fetch(start: Start, download: bool) -> None:
    """Have the file where it belongs."""
    if start.path.is_file():
        return
    if start.url is None or not download:
        raise ConfigError(
            f"{start.asked}: the weights are not there (looked for {start.path}); put the file there, name one with "
            "model.weights=FILE, let it be fetched with download=true, or start from random weights with "
            "model.pretrained=false"
        )
    progress.say(f"fetching {start.url} to {start.path}")
    try:
        start.path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(start.url, str(start.path), start.digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{start.asked}: cannot fetch {start.url} to {start.path}: {error}") from None


def _other_head(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The weight and bias of the one layer that differs, where it differs in the number of classes alone."""
    different = [key for key, value in own.items() if key in tensors and tensors[key].shape != value.shape]
    only_classes = all(
        own[key].shape[:1] == (num_classes,) and tensors[key].ndim and own[key].shape[1:] == tensors[key].shape[1:]
        for key in different
    )
    return different if only_classes and len({key.rpartition(".")[0] for key in different}) == 1 else []


@cache
def _sha256(path: Path, _size: int, _modified: int) -> str:
    return sha256_of(path)
