"""``victim=``: a network that is not trained here, from a file or from the store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from backdoor_bench import progress
from backdoor_bench.attack import Attack, Trigger
from backdoor_bench.dataset import Augmentation, Dataset, Manifest
from backdoor_bench.errors import ConfigError, StoreError, UntrustedError
from backdoor_bench.model import Network, addition, start
from backdoor_bench.model.base import IDENTITY
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import Store, identity
from backdoor_bench.suspect import export
from backdoor_bench.suspect.fit import fit
from backdoor_bench.suspect.read import read_weights, sha256_of
from backdoor_bench.trust import trusted_instance

KEY = re.compile(r"[0-9a-f]{20}")
OF_A_VICTIM = ("model", "attack", "recipe", "seed")
"""What a stored victim brings with it."""
LIBRARIES = ("torch", "backdoor_bench")


@dataclass(frozen=True)
class Given:
    """A model file, by its content, and the stored victim whose trigger it is measured with."""

    path: Path
    sha256: str
    trigger: str | None = None

    def describe(self) -> dict[str, Any]:
        """As records have it."""
        return {"file": self.path.name, "sha256": self.sha256, "trigger": self.trigger}


@dataclass(frozen=True)
class Origin:
    """What the file called each of the network's tensors, and its type there: an export gives them back."""

    names: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]


def resolve(config: Mapping[str, Any], store: Store) -> tuple[Mapping[str, Any], Given | None]:
    """The configuration of a run with what ``victim=`` means filled in; a :class:`Given` if it is a file.

    A stored victim brings its network, attack, recipe and seed. A file's network takes images in [0, 1], or
    normalised with ``mean`` and ``std``; the defender has all training images unless ``spc`` or ``clean_ratio`` say
    otherwise.

    Raises:
        ConfigError: neither a file nor a key, or options that do not go together.
        UntrustedError: the file is not read, or the store names what is not ours.
    """
    asked = config.get("victim")
    if config.get("export") is not None:
        if config.get("defense") is None:
            raise ConfigError("export= writes a purified network; add a defense with +defense=NAME")
        export.check_target(config["export"], replace=True)
    stored = asked is not None and KEY.fullmatch(str(asked)) and (store.root / "victims" / str(asked)).is_dir()
    if asked is None or stored:
        for name in ("trigger", "mean", "std"):
            if config.get(name) is not None:
                own = "; a trained one has its attack's" if name == "trigger" else f"; the data set's: dataset.{name}="
                raise ConfigError(f"{name}= belongs to a file's network (victim=FILE){own}")
        return (_with_stored(config, store, str(asked)) if stored else config), None
    path = Path(str(asked)).expanduser()
    if KEY.fullmatch(str(asked)) and not path.exists():
        raise ConfigError(f"victim={asked}: there is no such victim in {store.root}, and no such file")
    return _with_file(config, store, path)


def _with_file(config: Mapping[str, Any], store: Store, path: Path) -> tuple[dict[str, Any], Given]:
    trigger = config.get("trigger")
    if config.get("attack") is not None and trigger is None:
        raise ConfigError(
            "+attack= with victim=FILE: the trigger of a file's network is not known, so there is no ASR; leave "
            "+attack= out, or name a stored victim whose trigger it has with trigger=KEY"
        )
    if config["save_purified"]:
        raise ConfigError(
            "save_purified=true needs a victim of the store; a file's purified network: export=OUT.safetensors"
        )
    attack = None if trigger is None else _attack(config, store, str(trigger))
    node = {
        **start.constructor(config["model"]),
        "mean": _per_channel("mean", config.get("mean"), IDENTITY[0]),
        "std": _per_channel("std", config.get("std"), IDENTITY[1]),
    }
    all_images = {"clean_ratio": 1.0} if config["spc"] is None and config["clean_ratio"] is None else {}
    given = Given(path, _content(path), None if trigger is None else str(trigger))
    return {**config, **all_images, "model": node, "attack": attack}, given


def _per_channel(name: str, values: Any, default: Sequence[float]) -> list[float]:
    if values is None:
        return list(default)
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, (int, float)) for value in values):
        raise ConfigError(f"{name}={values}: expected three numbers, one per channel, e.g. {name}=[0.5,0.5,0.5]")
    return list(values)


def _content(path: Path) -> str:
    """The file's hash, computed once for each state of the file."""
    try:
        found = path.stat()
    except OSError:
        return sha256_of(path)  # says what is wrong
    return _hashed(path.absolute(), found.st_size, found.st_mtime_ns)


@cache
def _hashed(path: Path, _size: int, _modified: int) -> str:
    return sha256_of(path)


def _with_stored(config: Mapping[str, Any], store: Store, key: str) -> dict[str, Any]:
    """The stored victim's network, attack, recipe and seed, each of ours."""
    manifest = _manifest(store, key)
    stored, name = manifest["config"], manifest["config"]["dataset"]["name"]
    if config["dataset"]["name"] != name:  # the defense's lengths are those of its data set's recipe
        raise ConfigError(
            f"victim={key} was trained on {name}, and this run has {config['dataset']['name']}; add dataset={name}"
        )
    trust = config["trust"]
    trusted_instance(stored["model"], Network, trust, num_classes=manifest["num_classes"])
    attack = _attack(config, store, key) if stored["attack"] is not None else None
    if attack is None and config.get("attack") is not None:
        raise ConfigError(f"victim={key} is a clean network; leave +attack= out")
    _check_libraries(stored["recipe"], (*LIBRARIES, *trust))
    numerics = {name: manifest["numerics"][name] for name in ("precision", "channels_last")}
    brought = {"model": stored["model"], "attack": attack, "recipe": stored["recipe"], "seed": manifest["seed"]}
    return {**config, **brought, "trainer": {**config["trainer"], **numerics}}


def check_stored(config: Mapping[str, Any], victim_key: str) -> None:
    """Raise unless the plan of ``victim=KEY`` came to that key."""
    asked = config.get("victim")
    if victim_key != asked:
        raise ConfigError(
            f"victim={asked} is another here ({victim_key}): the data set's images or augmentation differ from those "
            "that it was trained with, or a method's version was raised since; train it again"
        )


def _attack(config: Mapping[str, Any], store: Store, key: str) -> dict[str, Any]:
    """The attack of a stored victim; ``+attack=`` may name it, and no other."""
    node = _manifest(store, key)["config"]["attack"]
    if node is None:
        raise ConfigError(f"trigger={key} is a clean network and has no trigger; name a victim of an attack")
    # One may wrap another, or have learned from another data set.
    trusted_instance(node, Attack, config["trust"], nested=(Attack, Dataset, Augmentation))
    asked = config.get("attack")
    if asked is not None and asked["_target_"] != node["_target_"]:
        raise ConfigError(
            f"victim {key} was attacked by {node['_target_']}, not {asked['_target_']}; leave +attack= out"
        )
    here = _here(node, config["data_dir"])
    assert isinstance(here, dict)
    return here


def _here(node: Any, data_dir: str) -> Any:
    """A stored node whose data sets lie where this run's do; a download is not for a stored file to decide."""
    if isinstance(node, Mapping):
        ours = {"data_dir": data_dir, "download": False}
        return {name: ours.get(name, _here(value, data_dir)) for name, value in node.items()}
    return [_here(item, data_dir) for item in node] if isinstance(node, (list, tuple)) else node


def _manifest(store: Store, key: str) -> Mapping[str, Any]:
    if not KEY.fullmatch(key):
        raise ConfigError(f"'{key}' is no key of a stored victim; expected 20 hexadecimal digits, as records have it")
    return _read_manifest(store.root, key)


@lru_cache(64)
def _read_manifest(root: Path, key: str) -> Mapping[str, Any]:
    stored = Store(root).load("victims", key)
    if stored is None:
        raise StoreError(f"there is no victim {key} in {root}")
    return stored.manifest


def _check_libraries(node: Any, packages: tuple[str, ...]) -> None:
    """A recipe names optimisers and schedules; nothing outside of these packages is even imported."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not any(f"{target}.".startswith(f"{package}.") for package in packages):
            raise UntrustedError(f"a stored recipe names '{target}', which is in none of {', '.join(packages)}")
        for inner in node.values():
            _check_libraries(inner, packages)
    elif isinstance(node, (list, tuple)):
        for inner in node:
            _check_libraries(inner, packages)


def victim_identity(given: Given, config: Mapping[str, Any], manifest: Manifest, numerics: Numerics) -> dict[str, Any]:
    """What determines a given network and what its defender sees: content, architecture, images, numerics."""
    trained = identity.victim_identity({**config, "recipe": {}, "attack": None}, manifest, numerics)
    kept = {name: value for name, value in trained.items() if name not in ("attack", "recipe", "seed")}
    return {**kept, "file_sha256": given.sha256, "trigger": given.trigger}


def load(given: Given, network: Network, config: Mapping[str, Any]) -> Origin:
    """Fill ``network`` with the file's tensors, in place, and say how its inputs are understood.

    Raises:
        UntrustedError: the file is not read, or is another than was planned.
        IncompatibleError: it does not fit, by name and shape.
    """
    weights = read_weights(given.path)
    if weights.sha256 != given.sha256:
        raise UntrustedError(f"{given.path} was changed since this run was planned; nothing was done")
    addition.restore(network, export.describe(weights)["additions"], config["trust"])
    names = fit(network, weights.tensors, str(given.path))
    mean, std = config.get("mean"), config.get("std")
    if mean is None and std is None:
        progress.say(f"{given.path.name}: images in [0, 1] go in as they are (no mean= and std= given)")
        folder = given.path.absolute().parent
        if KEY.fullmatch(folder.name) and (folder / "manifest.json").exists():
            progress.say(f"it lies in a store: victim={folder.name} brings its normalisation and its attack as well")
    else:
        progress.say(f"{given.path.name}: images are normalised with mean={mean}, std={std} for the work")
    return Origin(names, {name: weights.tensors[came].dtype for name, came in names.items()})


def load_trigger(given: Given, trigger: Trigger, store: Store, image_size: tuple[int, int]) -> None:
    """Fill the trigger with the tensors of the stored victim's."""
    assert given.trigger is not None
    stored = store.load("victims", given.trigger)
    if stored is None:
        raise StoreError(f"there is no victim {given.trigger} in {store.root}")
    if tuple(stored.manifest["image_size"]) != tuple(image_size):
        raise ConfigError(
            f"the trigger of {given.trigger} is for images of {stored.manifest['image_size']}, "
            f"these are {list(image_size)}"
        )
    trigger.load_state_dict(dict(stored.tensors.get("trigger", {})))


def at_chance_advice(manifest: Manifest) -> str:
    """What to look at where a file's network is no better than a constant answer."""
    return (
        "Is the normalisation right (mean=, std=)? Is the order of the classes "
        f"({', '.join(manifest.class_names[:3])}, ...) the network's?"
    )
