"""What determines a victim and a run, and the keys made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, get_type_hints

from hydra.utils import get_object

from backdoor_bench.attack import Attack
from backdoor_bench.dataset import Dataset, Manifest, Regime
from backdoor_bench.model import start
from backdoor_bench.numerics import Numerics

FORMAT = 1
"""Raise when keys change their meaning; every earlier record is then of another kind."""


def key(identity: Mapping[str, Any]) -> str:
    """20 hexadecimal digits of the sha256 of a normalised identity."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def victim_identity(config: Mapping[str, Any], manifest: Manifest, numerics: Numerics) -> Mapping[str, Any]:
    """Everything that determines a victim's weights: images, network, attack, recipe, seed, numerics; to be read."""
    training = {name: value for name, value in config["recipe"].items() if name not in ("width", "lengths")}
    return settled(
        {
            "format": FORMAT,
            "train_sha256": manifest.train_sha256,
            "num_classes": manifest.num_classes,
            "augmentation": config["dataset"]["augmentation"],
            "model": start.hashed(config["model"]),
            "attack": config.get("attack"),
            "recipe": training,
            "seed": config["seed"],
            "precision": numerics.precision,
            "channels_last": numerics.channels_last,
        }
    )


def run_identity(victim_key: str, config: Mapping[str, Any], manifest: Manifest) -> Mapping[str, Any]:
    """A victim's key, the test images, and, with a defense, its stages in order, the regime and the repetition."""
    identity: dict[str, Any] = {"format": FORMAT, "victim": victim_key, "test_sha256": manifest.test_sha256}
    defense = config.get("defense")
    if defense is None:
        return identity
    regime = Regime.of(config["spc"], config["clean_ratio"])
    what = {
        "assumes": defense.get("assumes", []),
        "use_validation": defense.get("use_validation", "hold_out"),
        "stages": list(defense["stages"].items()),
    }
    return {
        **identity,
        "defense": settled(what),
        "spc": regime.spc,
        "clean_ratio": normalise(regime.clean_ratio),
        "clean_from": config["clean_from"],
        "repetition": normalise(config["repetition"]),
    }


def by_content(node: Any, told: Callable[[str, Mapping[str, Any]], Manifest], path: str) -> Any:
    """A method's node with every data set in it replaced by its training images, wherever their files lie.

    Args:
        told: from the path of such a node (``attack.outside``) and the node to its manifest.
        path: of ``node`` in the configuration.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str) and _is_dataset(target):
            return {"train_sha256": told(path, node).train_sha256}
        return {name: by_content(value, told, f"{path}.{name}") for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [by_content(item, told, f"{path}.{number}") for number, item in enumerate(node)]
    return node


@cache
def _is_dataset(target: str) -> bool:
    kind = get_object(target)
    return isinstance(kind, type) and issubclass(kind, Dataset)


def settled(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node, versioned and normalised; once for each content, for a sweep asks 100,000 times. It is to be read."""
    return _settled(json.dumps(node))


@lru_cache(4096)
def _settled(text: str) -> Mapping[str, Any]:
    found = normalise(versioned(json.loads(text)))
    assert isinstance(found, dict)
    return found


def versioned(node: Any) -> Any:
    """The node with the ``version`` of each class that it names and that has one; an attack's trigger has its own."""
    if isinstance(node, Mapping):
        found = {name: versioned(value) for name, value in node.items()}
        target = node.get("_target_")
        if isinstance(target, str):
            found |= _versions(target)
        return found
    if isinstance(node, (list, tuple)):
        return [versioned(item) for item in node]
    return node


def versions(node: Any, path: str = "") -> dict[str, int]:
    """The versions of a configuration's classes by their place in it, for a record to say what a key only digests.

    ``attack`` is the attack's own, ``attack.trigger`` its trigger's, ``defense.stages.unlearn`` a stage's.
    """
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return {}
    target = node.get("_target_")
    own = _versions(target) if isinstance(target, str) else {}
    places = {"_version_": path, "_trigger_version_": f"{path}.trigger"}
    found = {places[name]: version for name, version in own.items()}
    for name, value in node.items():
        found |= versions(value, f"{path}.{name}" if path else str(name))
    return found


@cache
def _versions(target: str) -> dict[str, int]:
    kind = get_object(target)
    kinds = {"_version_": kind}
    if isinstance(kind, type) and issubclass(kind, Attack):
        kinds["_trigger_version_"] = get_type_hints(kind.trigger).get("return")
    versions = {name: getattr(found, "version", None) for name, found in kinds.items()}
    return {name: version for name, version in versions.items() if isinstance(version, int)}


def normalise(value: Any) -> Any:
    """One spelling per value: whole floats as ints, tuples as lists, keys as strings."""
    if isinstance(value, Mapping):
        return {str(name): normalise(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalise(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
