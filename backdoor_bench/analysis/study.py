"""One victim with the networks made of it, and images to look at; found in the store, or made and kept there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_bench import config as configuration
from backdoor_bench import experiment, progress, remeasure, seeding
from backdoor_bench.bench import Bench, Plan
from backdoor_bench.chance import at_chance, best_constant
from backdoor_bench.dataset import ImageSet
from backdoor_bench.defense import DefenderView, Defense
from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.evaluation import triggered_set
from backdoor_bench.metric import TriggeredSet

Compose = Callable[[str | None], Mapping[str, Any]]
"""A resolved configuration with the defense of this name, or without one."""


class Study:
    """What an analysis looks at. The trigger is in it: nothing here is ever handed to a defense.

    Args:
        compose: gives the victim's configuration, without a defense and with each that is asked for.
        bench: keeps victims and data; its store has the networks.
        defenses: whose purified networks are looked at, beside the victim.
        count: test images to look at, at most.
    """

    def __init__(self, compose: Compose, bench: Bench, defenses: Sequence[str] = (), count: int = 1000) -> None:
        if count < 2:
            raise ConfigError(f"--images {count}: expected 2 or more")
        self.compose, self.bench, self.defenses, self.count = compose, bench, tuple(defenses), count
        self.plan = bench.plan(compose(None))
        self.data = bench.data(self.plan)
        _say_if_missing(bench, self.plan, "the victim")
        self.victim = bench.victim(self.plan, self.data)
        self.numerics = self.plan.numerics

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """``victim`` and the purified network of each defense, by name; in eval mode."""
        return {"victim": self.victim.network, **{name: self._purified(name) for name in self.defenses}}

    @cached_property
    def clean_network(self) -> nn.Module | None:
        """The network of the same configuration and seed without an attack; None for a victim that came as a file."""
        if self.plan.given is not None:
            return None
        plan = self.bench.plan({**self.plan.config, "attack": None, "victim": None})
        _say_if_missing(self.bench, plan, "the clean network to compare with")
        return self.bench.victim(plan, self.data).network

    @cached_property
    def images(self) -> ImageSet:
        """Up to ``count`` images drawn from the test set, the same for every victim of the data set."""
        test = self.data.test
        order = torch.randperm(len(test), generator=seeding.generator("analysis", "images"))[: self.count]
        return test[order.sort().values.to(test.labels.device)]

    @cached_property
    def triggered(self) -> TriggeredSet:
        """Those of :attr:`images` that are not of their attack label already, triggered.

        Raises:
            ConfigError: the victim has no attack.
        """
        attack, trigger = self.attack, self.victim.trigger
        assert trigger is not None
        return triggered_set(self.images, attack, trigger, self.data.num_classes, self.numerics)

    @cached_property
    def untriggered(self) -> ImageSet:
        """The clean images behind :attr:`triggered`, in the same order."""
        wanted = self.attack.attack_labels(self.images.labels, self.data.num_classes)
        return self.images[wanted != self.images.labels]

    @property
    def attack(self) -> Any:
        """The victim's attack.

        Raises:
            ConfigError: it has none.
        """
        node = self.plan.config.get("attack")
        if node is None:
            raise ConfigError(
                "this analysis needs a trigger, and the victim was trained without an attack; add +attack=NAME"
            )
        return configuration.make(node)

    def defender(self, name: str) -> tuple[Defense, DefenderView]:
        """A defense by name, and the view that it would get of this victim: for the scores that it computes."""
        plan = self.bench.plan(self.compose(name))
        defense: Defense = configuration.make(plan.config["defense"])
        return defense, experiment.defender_view(plan, self.data, self.victim, defense)[0]

    def each(self, images: Tensor, function: Callable[[Tensor], Tensor], batch_size: int = 250) -> Tensor:
        """``function`` of float batches of stored images, in the precision of the run; float32, concatenated."""
        parts = []
        with torch.no_grad():  # not inference mode: walks through a network look at tensors' versions
            for stored in images.split(batch_size):
                with self.numerics.autocast():
                    parts.append(function(self.numerics.images(stored)).float())
        return torch.cat(parts)

    def caption(self) -> list[str]:
        """What the victim is, for a footnote."""
        plan, measured = self.plan, self.victim.measurement
        ratio = (
            "" if self.victim.ratio is None or not plan.attack else f", poisoning ratio {100 * self.victim.ratio:g} %"
        )
        source = "" if plan.given is None else f" (from {plan.given.path.name})"
        lines = [f"Victim: {plan.attack or 'no attack'}{source}{ratio}, {plan.manifest.variant}, {plan.architecture}, "
                 f"preset {plan.config['preset']['name']}, seed {plan.config['seed']}"]  # fmt: skip
        idle = ", at chance" if at_chance(measured.acc, best_constant(plan.manifest.test_counts)) else ""
        if measured.asr is None:
            return [*lines, f"ACC {100 * measured.acc:.1f} %{idle}"]
        weak = ", a weak attack" if measured.asr < plan.config["weak_attack_below"] else ""
        return [*lines, f"ACC {100 * measured.acc:.1f} %{idle}, ASR {100 * measured.asr:.1f} %{weak}"]

    def _purified(self, name: str) -> nn.Module:
        if self.plan.given is not None:
            return self._purified_now(name)
        plan = self.bench.plan({**self.compose(name), "save_purified": True, "force": False})
        if self.bench.store.load("purified", plan.key) is None:
            progress.say(f"no network purified with {name} in {self.bench.store.root}; making and keeping it")
            experiment.run_plan(plan, self.bench)
        stored = self.bench.store.load("purified", plan.key)
        victim = self.bench.store.load("victims", plan.victim_key)
        if stored is None or victim is None:
            raise StoreError(f"the network purified with {name} could not be kept in {self.bench.store.root}")
        return remeasure.load_network(victim, stored, self.numerics, self.plan.config["trust"])

    def _purified_now(self, name: str) -> nn.Module:
        """A file's network, purified: the store keeps only what was made of its own victims."""
        progress.say(f"purifying the given network with {name}")
        defense, view = self.defender(name)
        network = copy.deepcopy(self.victim.network)
        for _ in defense.run(network, view):
            pass
        return network.eval()


def _say_if_missing(bench: Bench, plan: Plan, what: str) -> None:
    if plan.given is None and not (bench.store.root / "victims" / plan.victim_key).is_dir():
        progress.say(f"{what} is not in {bench.store.root}; training and keeping it")
