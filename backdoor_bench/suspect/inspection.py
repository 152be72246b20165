"""What a model file is, found out without executing anything in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from backdoor_bench import config as configuration
from backdoor_bench.errors import BenchError
from backdoor_bench.model import Network
from backdoor_bench.suspect import declared
from backdoor_bench.suspect.composed import compose
from backdoor_bench.suspect.container import (
    LIMIT_BYTES,
    TORCHSCRIPT,
    Refused,
    look,
    open_file,
    printable,
)
from backdoor_bench.suspect.declared import Declared
from backdoor_bench.suspect.fit import compare
from backdoor_bench.suspect.read import WRAPPINGS, read_weights, sha256_of

CLOSE = 0.1
"""Share of tensors that may differ where an architecture is called close."""


@dataclass
class Inspection:
    """What was found.

    Attributes:
        refused: why ``victim=`` would not read the file; None: it would.
        calls: what unpickling it would import or call besides making tensors.
        wrapping: where in the file the state dict is; empty: at the top.
        tensors: all that the file declares.
        weights: those of the state dict, under their names there.
        classes: rows of the last matrix.
        fits: architectures of ``conf/model`` with the same names and shapes, and their options.
        close: others, with how many tensors differ.
    """

    path: Path
    bytes: int = 0
    sha256: str | None = None
    kind: str | None = None
    refused: str | None = None
    calls: list[str] = field(default_factory=list)
    wrapping: str = ""
    tensors: dict[str, Declared] = field(default_factory=dict)
    weights: dict[str, Declared] = field(default_factory=dict)
    classes: int | None = None
    fits: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)


def inspect(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> Inspection:
    """Look at a file of any kind; never raises for what the file is."""
    found = Inspection(Path(path))
    try:
        with open_file(path, limit_bytes) as (file, found.bytes):
            container = look(file, found.bytes)
        found.kind = container.kind
        found.sha256 = sha256_of(path, limit_bytes)
        found.calls = [printable(name) for name in declared.foreign(container)]
        found.tensors = declared.tensors(container)
        found.wrapping, found.weights = _unwrapped(found.tensors)
        found.classes = _classes(found.weights)
        if found.kind != TORCHSCRIPT and found.classes is not None:
            found.fits, found.close = _architectures(found.weights, found.classes)
        read_weights(path, limit_bytes)
    except Refused as refused:
        found.refused = str(refused)
    return found


def _unwrapped(tensors: Mapping[str, Declared]) -> tuple[str, dict[str, Declared]]:
    """The state dict among nested containers, as :func:`read_weights` finds it, and where it is."""
    where, found = "", dict(tensors)
    for _ in range(4):
        inside = next((name for name in WRAPPINGS if any(key.startswith(f"{name}.") for key in found)), None)
        if inside is None or not any(not key.startswith(f"{inside}.") or "." in key for key in found):
            break
        where += f"{inside}."
        found = {key.removeprefix(f"{inside}."): value for key, value in found.items() if key.startswith(f"{inside}.")}
    for prefix in ("module.", "_orig_mod."):
        if found and all(key.startswith(prefix) for key in found):
            where += prefix
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return where.rstrip("."), found


def _classes(weights: Mapping[str, Declared]) -> int | None:
    """Rows of the last weight matrix: the classifier's, in networks that register it last."""
    matrices = [value.shape[0] for name, value in weights.items() if name.endswith("weight") and len(value.shape) == 2]
    return matrices[-1] if matrices and matrices[-1] > 1 else None


def _architectures(weights: Mapping[str, Declared], classes: int) -> tuple[list[str], list[str]]:
    """Which networks of ``conf/model`` have these tensors, and which nearly have; built on the meta device."""
    with torch.device("meta"):
        tensors = {name: torch.empty(value.shape) for name, value in weights.items()}
    fits, close = [], []
    for name, options, network in _networks(tensors, classes):
        match = compare(network, tensors)
        if not match.differences:
            fits.append(" ".join([f"model={name}", *options]))
        elif len(match.differences) <= CLOSE * match.count:
            close.append(
                f"model={name} but for {len(match.differences)} of {match.count} tensors: {match.differences[0]}"
            )
    return fits, close


def _networks(tensors: Mapping[str, Tensor], classes: int) -> Iterator[tuple[str, list[str], Network]]:
    first = next((value.shape[0] for value in tensors.values() if value.ndim == 4), None)
    if first is None:  # all of them have convolutions
        return
    for path in sorted((configuration.directory() / "model").glob("*.yaml")):
        network, has_width = _network(path.stem, classes, first)
        if network is not None:
            yield path.stem, [f"model.width={first}"] if has_width else [], network


@lru_cache(64)
def _network(name: str, classes: int, width: int) -> tuple[Network | None, bool]:
    """On the meta device; ``width`` where it is an option. None: it needs a name, or is not installed."""
    from backdoor_bench.bench import make_model  # it uses this package

    try:
        composed = compose(f"model={name}", "dataset=image_folder", "dataset.root=.")
        node: Any = OmegaConf.to_container(composed.model, resolve=True, throw_on_missing=True)
        has_width = "width" in node
        with torch.device("meta"):
            return make_model({**node, "width": width} if has_width else node, classes), has_width
    except (BenchError, OmegaConfBaseException):
        return None, False
