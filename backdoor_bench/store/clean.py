"""Clean networks that attacks train for themselves (surrogates): one for all victims that need the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from backdoor_bench import environment, progress
from backdoor_bench.model import Network
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import identity
from backdoor_bench.store.base import Store, Stored

OF_THE_VICTIM = ("format", "train_sha256", "num_classes", "model", "seed", "precision", "channels_last")
"""What of a victim's identity determines such a network, too."""


class CleanNetworks:
    """``clean/KEY/`` of a store, for the training of one victim; what :attr:`AttackerView.share` calls.

    Args:
        victim: the victim's identity.
        numerics: for the manifests.

    Attributes:
        keys: of the networks that the victim's attack has asked for so far.
    """

    def __init__(self, store: Store, victim: Mapping[str, Any], numerics: Numerics) -> None:
        self.store, self.numerics, self.keys = store, numerics, list[str]()
        self._setting = {name: victim[name] for name in OF_THE_VICTIM}

    def __call__(self, network: Network, told: Mapping[str, Any], train: Callable[[], object]) -> None:
        """Give ``network`` the weights stored for what was ``told`` of it, or train and store it."""
        whole = {**self._setting, **identity.settled(told)}
        key = identity.key(whole)

        def make() -> Stored:
            started = time.time()
            train()
            manifest = {
                "identity": whole,
                "seconds": time.time() - started,
                "numerics": self.numerics.describe(),
                "environment": environment.describe(),
            }
            return Stored({"network": network.state_dict()}, manifest)

        stored, made = self.store.obtain("clean", key, make)
        if not made:
            progress.say(f"found in the store: {told['title']} {key}")
            network.load_state_dict(dict(stored.tensors["network"]))
        self.keys.append(key)
