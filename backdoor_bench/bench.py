"""A warm process: what several runs share (data sets, victims, triggered test sets) is made once and kept."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backdoor_bench import config as configuration
from backdoor_bench import environment, option, progress, settings
from backdoor_bench.attack import Attack, Trigger, train_victim
from backdoor_bench.dataset import Data, Dataset, Manifest, Regime
from backdoor_bench.defense import Defense
from backdoor_bench.errors import ConfigError, DataError
from backdoor_bench.evaluation import make_evaluator
from backdoor_bench.memory import Answers, answer, remember
from backdoor_bench.metric import Evaluator, Measurement
from backdoor_bench.model import Network, anatomy, architecture, start
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import Store, Stored, identity
from backdoor_bench.store.clean import CleanNetworks
from backdoor_bench.suspect import given as suspects


@dataclass(frozen=True)
class Plan:
    """One run, composed and hashed, before any work."""

    config: Mapping[str, Any]
    manifest: Manifest
    numerics: Numerics
    regime: Regime
    victim_identity: Mapping[str, Any]
    victim_key: str
    key: str
    given: suspects.Given | None = None
    """The file that the victim comes from; None: it is trained here, or was."""

    @property
    def attack(self) -> str | None:
        return _leaf(self.config.get("attack"))

    @property
    def architecture(self) -> str:
        return architecture(self.config["model"])


@dataclass(frozen=True)
class Victim:
    """A trained network with what the attacker knows of it, on the device, measured; None where it is not known."""

    network: Network
    trigger: Trigger | None
    altered: Tensor | None
    ratio: float | None
    seconds: float | None
    measurement: Measurement
    trained_now: bool
    origin: suspects.Origin | None = None


class Bench:
    """Data sets, victims and evaluators for the runs of one process, over one store.

    Args:
        store: where victims and records are.
        keep: how many victims (and evaluators) stay in memory.
    """

    def __init__(self, store: Store, keep: int = 4) -> None:
        self.store = store
        self._data: OrderedDict[str, Data] = OrderedDict()
        self._victims: OrderedDict[str, Victim] = OrderedDict()
        self._evaluators: OrderedDict[str, Evaluator] = OrderedDict()
        # What planning has found out, by what it depends on: the thing itself, or why it cannot be.
        self._manifests: Answers[str, Manifest] = OrderedDict()
        self._shapes: Answers[Any, tuple[Network, Tensor]] = OrderedDict()
        self._checked: Answers[Any, object] = OrderedDict()
        self._told: Answers[Any, Any] = OrderedDict()
        self._keep = keep

    def plan(self, config: Mapping[str, Any]) -> Plan:
        """Resolve what is automatic, refuse what cannot be, make the keys.

        Nothing is trained, and nothing read but the data set's manifest and the hash of a given file.
        """
        config, given = suspects.resolve(settings.checked(config), self.store)
        trainer = config["trainer"]
        numerics = Numerics.resolve(config["device"], trainer["precision"], trainer["channels_last"])
        regime = Regime.of(config["spc"], config["clean_ratio"])
        manifest = self.manifest(config)
        self._check(config, manifest, regime)
        methods = ("defense",) if given is not None else ("attack", "defense")
        told = {**config, **{group: self._by_content(config, group) for group in methods}}
        if given is None:
            victim = identity.victim_identity(told, manifest, numerics)
        else:
            victim = suspects.victim_identity(given, config, manifest, numerics)
        victim_key = identity.key(victim)
        if given is None and config.get("victim") is not None:
            suspects.check_stored(config, victim_key)
        key = identity.key(identity.run_identity(victim_key, told, manifest))
        return Plan(config, manifest, numerics, regime, victim, victim_key, key, given)

    def manifest(self, config: Mapping[str, Any]) -> Manifest:
        """Of the configuration's data set. Raises DataError where it is not there."""
        return answer(self._manifests, _text(config["dataset"]), 16, lambda: self._source(config).manifest())

    def _check(self, config: Mapping[str, Any], manifest: Manifest, regime: Regime) -> None:
        """Refuse what cannot be. A sweep plans the same methods thousands of times: each is looked at once."""
        attack, defense = config.get("attack"), config.get("defense")
        images, classes, size = manifest.train_sha256, manifest.num_classes, manifest.image_size

        def check_defense() -> None:
            made = option.make(defense or {}, "defense")
            assert isinstance(made, Defense)
            with torch.device("meta"):
                made.check_network(*self._shape(config["model"], classes, size))

        if defense is not None:
            self._once((regime, images), lambda: regime.counts(list(manifest.train_counts)))
            self._once((_text(defense), _text(config["model"]), classes, size), check_defense)

        def check_recipe() -> None:
            option.make(configuration.training_part(config["recipe"]), "recipe")

        def check_attack() -> None:
            option.make(attack or {}, "attack").check(classes)

        self._shape(config["model"], classes, size)
        self._once(_text(config["recipe"]), check_recipe)
        if attack is not None:
            self._once((_text(attack), classes), check_attack)

    def _by_content(self, config: Mapping[str, Any], group: str) -> Any:
        """A method's node as keys have it: other data sets that it needs are there, and are known by their images."""
        own = self.manifest(config)

        def manifest(path: str, node: Mapping[str, Any]) -> Manifest:
            try:
                found = self.manifest({"dataset": node})
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
            if found.name == own.name or {found.train_sha256, found.test_sha256} & {own.train_sha256, own.test_sha256}:
                raise ConfigError(f"{path} is {own.name}, the run's own; name another, e.g. dataset@{path}=cifar100")
            return found

        node = config.get(group)
        question = (_text(node or {}), own.train_sha256)
        return node and answer(self._told, question, 4096, lambda: identity.by_content(node, manifest, group))

    def _once(self, question: Hashable, check: Callable[[], object]) -> None:
        answer(self._checked, question, 4096, check)

    def _shape(self, model: Mapping[str, Any], classes: int, size: tuple[int, int]) -> tuple[Network, Tensor]:
        """A network without memory for its weights, and images as it takes them."""

        def make() -> tuple[Network, Tensor]:
            with torch.device("meta"):
                network = option.make(start.constructor(model), "model", num_classes=classes)
                return network, anatomy.example(network, size)

        return answer(self._shapes, (_text(model), classes, size), 4, make)

    def data(self, plan: Plan) -> Data:
        """The data set, on the device; images that would fill it are held in host memory."""
        device, share = plan.numerics.device, plan.config["trainer"]["dataset_memory_share"]
        name = f"{_text(plan.config['dataset'])} on {device} within {share}"
        return remember(self._data, name, 1, lambda: self._source(plan.config).load().to(device, share))

    def victim(self, plan: Plan, data: Data) -> Victim:
        """The victim of a plan: from memory, from its file or the store, or trained now."""
        name = f"{plan.victim_key} on {plan.numerics.device}"
        found = self._victims.pop(name, None)
        if found is None and plan.given is not None:
            found = self._read(plan, plan.given, data)
        elif found is None:
            stored, made = self.store.obtain("victims", plan.victim_key, lambda: self._train(plan, data))
            if not made:
                progress.say(f"found in the store: victim {plan.victim_key}")
            found = self._load(plan, data, stored, made)
        # Whoever asks next did not train it.
        self._victims[name] = Victim(**{**vars(found), "trained_now": False})
        while len(self._victims) > self._keep:
            self._victims.popitem(last=False)
        return found

    def evaluator(self, plan: Plan, data: Data, trigger: Trigger | None) -> Evaluator:
        """The evaluator of a victim's test sets; the triggered one is made once."""
        name = f"{plan.victim_key} on {plan.numerics.device} by {plan.config['trainer']['eval_batch_size']}"
        return remember(self._evaluators, name, self._keep, lambda: _evaluator(plan, data, trigger))

    def _source(self, config: Mapping[str, Any]) -> Dataset:
        source = option.make(config["dataset"], "dataset")
        assert isinstance(source, Dataset)
        return source

    def _train(self, plan: Plan, data: Data) -> Stored:
        attack = _attack(plan)
        make_network = partial(start_model, plan.config["model"], num_classes=data.num_classes)
        recipe = configuration.make_recipe(dict(plan.config["recipe"]))
        clean = CleanNetworks(self.store, plan.victim_identity, plan.numerics)
        started = time.perf_counter()
        trained = train_victim(data, make_network, attack, recipe, plan.numerics, plan.config["seed"], clean)
        seconds = time.perf_counter() - started  # what the attack prepared is the most of some victims
        measured = self.evaluator(plan, data, trained.trigger).measure(trained.network)
        tensors: dict[str, dict[str, Tensor]] = {"network": trained.network.state_dict()}
        if trained.trigger is not None:
            tensors["trigger"] = trained.trigger.state_dict()
        if trained.altered is not None:
            tensors["poison"] = {"altered": trained.altered.nonzero().flatten()}
        manifest = {
            "identity": dict(plan.victim_identity),
            "config": {
                **{name: plan.config.get(name) for name in ("dataset", "attack", "recipe", "trainer")},
                "model": start.constructor(plan.config["model"]),
            },
            "seed": plan.config["seed"],
            "num_classes": data.num_classes,
            "image_size": list(data.manifest.image_size),
            "poisoning_ratio": trained.ratio,
            "loss": trained.history.loss,
            "seconds": seconds,
            "measured": measured.describe(),
            "test_sha256": data.manifest.test_sha256,
            "eval_batch_size": plan.config["trainer"]["eval_batch_size"],
            "numerics": plan.numerics.describe(),
            "environment": environment.describe(),
            **({"clean": clean.keys} if clean.keys else {}),
        }
        return Stored(tensors, manifest)

    def _read(self, plan: Plan, given: suspects.Given, data: Data) -> Victim:
        network = make_model(plan.config["model"], data.num_classes)
        origin = suspects.load(given, network, plan.config)
        plan.numerics.place(network).eval()
        attack, trigger = _attack(plan), None
        if attack is not None:
            trigger = attack.trigger(data.manifest.image_size)
            suspects.load_trigger(given, trigger, self.store, data.manifest.image_size)
            trigger.to(plan.numerics.device).eval().requires_grad_(False)
        measured = self.evaluator(plan, data, trigger).measure(network)
        return Victim(network, trigger, None, None, None, measured, False, origin)

    def _load(self, plan: Plan, data: Data, stored: Stored, made: bool) -> Victim:
        network = make_model(plan.config["model"], data.num_classes)
        network.load_state_dict(dict(stored.tensors["network"]))
        plan.numerics.place(network).eval()
        attack, trigger = _attack(plan), None
        if attack is not None:
            trigger = attack.trigger(data.manifest.image_size)
            trigger.load_state_dict(dict(stored.tensors.get("trigger", {})))
            trigger.to(plan.numerics.device).eval().requires_grad_(False)
        altered = None
        if "poison" in stored.tensors:
            altered = torch.zeros(len(data.train), dtype=torch.bool)
            altered[stored.tensors["poison"]["altered"]] = True
        manifest = stored.manifest
        same_test = manifest["test_sha256"] == data.manifest.test_sha256
        measured = Measurement(**manifest["measured"])
        evaluator = self.evaluator(plan, data, trigger)
        # Its attack may measure more than it did when the victim was stored.
        if not (same_test and manifest["numerics"] == plan.numerics.describe() and evaluator.gives(measured)):
            measured = evaluator.measure(network)
        return Victim(network, trigger, altered, manifest["poisoning_ratio"], manifest["seconds"], measured, made)


def make_model(node: Mapping[str, Any], num_classes: int, **overrides: Any) -> Network:
    """A network of the configured architecture, from random weights; ``overrides`` replace its options."""
    options = start.constructor(node)
    foreign = ", ".join(sorted(overrides.keys() - options.keys()))
    if foreign:
        raise ConfigError(
            f"{architecture(node)} has no {foreign}; only the networks of backdoor_bench's own have, torchvision's and "
            "timm's are as published"
        )
    network = configuration.make({**options, **overrides}, num_classes=num_classes)
    assert isinstance(network, Network)
    return network


def start_model(node: Mapping[str, Any], num_classes: int, **overrides: Any) -> Network:
    """A network as a training starts: from published weights or a file's, if the configuration says so.

    With ``overrides`` (an attacker's own width) it is another architecture, from random weights.
    """
    network = make_model(node, num_classes, **overrides)
    if not overrides:
        start.load(network, node)
    return network


def _evaluator(plan: Plan, data: Data, trigger: Trigger | None) -> Evaluator:
    batch_size = plan.config["trainer"]["eval_batch_size"]
    return make_evaluator(data.test, _attack(plan), trigger, data.num_classes, plan.numerics, batch_size)


def _attack(plan: Plan) -> Attack | None:
    node = plan.config.get("attack")
    return None if node is None else configuration.make(node)


def _leaf(node: Mapping[str, Any] | None) -> str | None:
    """A method's name is its module's: ``backdoor_bench.attack.wanet.WaNet`` is ``wanet``."""
    return None if node is None else str(node["_target_"]).split(".")[-2]


def _text(node: Mapping[str, Any]) -> str:
    return json.dumps(node, sort_keys=True)
