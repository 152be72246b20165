"""Measure a stored network again: ``python -m backdoor_bench.remeasure KEY``.

KEY is a victim's, or that of a run whose purified network was saved. Unless told otherwise it is measured as it was
recorded, on the same kind of device with as many threads: there the figures come out exactly. The stored configuration
is somebody's file: what it names is instantiated only if it is ours (see :mod:`backdoor_bench.trust`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from backdoor_bench import environment, pipe, progress
from backdoor_bench.attack import Attack
from backdoor_bench.dataset import Augmentation, Dataset
from backdoor_bench.errors import BenchError, StoreError
from backdoor_bench.evaluation import make_evaluator
from backdoor_bench.metric import Evaluator, Measurement
from backdoor_bench.model import Network, addition
from backdoor_bench.numerics import Numerics
from backdoor_bench.store import Store, Stored
from backdoor_bench.table import percent
from backdoor_bench.trust import trusted_instance

TOLERANCE = 0.002
"""0.2 points: what another device, thread count or version may change."""


@dataclass(frozen=True)
class Remeasured:
    """Recorded and measured again; ``same_setting``: same kind of machine, threads and versions."""

    recorded: Measurement
    measured: Measurement
    same_setting: bool

    @property
    def difference(self) -> float:
        """The largest difference of ACC, ASR, RA and what the attack measures besides, as a fraction."""
        return max(abs(a - b) for _, a, b in self.pairs if a is not None and b is not None)

    @property
    def pairs(self) -> list[tuple[str, float | None, float | None]]:
        """Each measure by name: as recorded, and now. What was not recorded at the time is null."""
        then, now = ({**vars(found), **found.extra} for found in (self.recorded, self.measured))
        return [(name, then.get(name), now[name]) for name in ("acc", "asr", "ra", *self.measured.extra)]

    @property
    def agrees(self) -> bool:
        """Exactly in the same setting, else within :data:`TOLERANCE`."""
        return self.difference <= (0.0 if self.same_setting else TOLERANCE)


def remeasure(
    store: Store,
    key: str,
    data_dir: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
    threads: int | None = None,
) -> Remeasured:
    """Load a victim or purified network by key and measure it on its data set.

    Args:
        data_dir: where the data set is; None: where it was.
        device: cpu, cuda or cuda:N; auto: the recorded kind if this machine has it, else what it has.
        trust: packages besides backdoor_bench whose classes the stored configuration may name.
        threads: of the CPU, while it is measured; None: as recorded, if this machine has as many cores.

    Raises:
        StoreError: no such key, or the data set here is not the one it was measured on.
        UntrustedError: the stored configuration names something that is not ours.
    """
    stored = store.load("purified", key) or store.load("victims", key)
    if stored is None:
        raise StoreError(
            f"no victim and no purified network {key} in {store.root}; a run keeps its purified network only with "
            f"save_purified=true{_victim_of(store, key)}"
        )
    victim = store.load("victims", stored.manifest["victim"]) if "victim" in stored.manifest else stored
    if victim is None:
        raise StoreError(f"the victim {stored.manifest['victim']} of {key} is not in {store.root}")
    numerics, recorded = _numerics(stored.manifest["numerics"], device), stored.manifest["environment"]
    if threads is None and recorded["threads"] in range(1, (os.cpu_count() or 1) + 1):
        threads = recorded["threads"]
    with environment.threads(threads or torch.get_num_threads()):
        evaluator = _evaluator(victim, numerics, data_dir, trust)
        measured = evaluator.measure(load_network(victim, stored, numerics, trust))
        same = recorded | {"revision": None} == environment.describe() | {"revision": None}
    same = same and stored.manifest["numerics"] == numerics.describe()
    return Remeasured(Measurement(**stored.manifest["measured"]), measured, same)


def _victim_of(store: Store, key: str) -> str:
    """What to ask for instead of a run that kept no network."""
    victim = (store.record(key) or {}).get("victim")
    return f"; the victim of this run is {victim}" if victim and (store.root / "victims" / str(victim)).is_dir() else ""


def load_network(victim: Stored, stored: Stored, numerics: Numerics, trust: Sequence[str] = ()) -> Network:
    """A stored network: the victim's architecture, the additions of the defense, the tensors."""
    node = victim.manifest["config"]["model"]
    network = trusted_instance(node, Network, trust, num_classes=victim.manifest["num_classes"])
    addition.restore(network, stored.manifest.get("additions", []), trust)
    try:
        network.load_state_dict(dict(stored.tensors["network"]))
    except (KeyError, RuntimeError) as error:
        raise StoreError(f"the tensors of {stored.manifest['key']} do not fit its configuration: {error}") from error
    return numerics.place(network).eval()


def _evaluator(victim: Stored, numerics: Numerics, data_dir: str | None, trust: Sequence[str]) -> Evaluator:
    manifest = victim.manifest
    node: Mapping[str, Any] = dict(manifest["config"]["dataset"])
    if data_dir is not None and "data_dir" in node:
        node = {**node, "data_dir": data_dir}
    if "download" in node:  # not for a stored file to decide
        node = {**node, "download": False}
    data = trusted_instance(node, Dataset, trust, nested=Augmentation).load()
    if data.manifest.test_sha256 != manifest["test_sha256"]:
        raise StoreError(
            f"the test images of {data.manifest.variant} here are not those that {manifest['key']} was measured on"
        )
    attack = trigger = None
    if manifest["config"]["attack"] is not None:
        attack = trusted_instance(manifest["config"]["attack"], Attack, trust, nested=(Attack, Dataset, Augmentation))
        trigger = attack.trigger(data.manifest.image_size)
        trigger.load_state_dict(dict(victim.tensors.get("trigger", {})))
        trigger.to(numerics.device).eval()
    test = data.test.to(numerics.device)
    return make_evaluator(test, attack, trigger, data.num_classes, numerics, manifest["eval_batch_size"])


def _numerics(recorded: Mapping[str, Any], device: str) -> Numerics:
    """As recorded; the device, if another is asked for or that kind is not here, is another."""
    if device == "auto" and (recorded["device"] != "cuda" or torch.cuda.is_available()):
        device = recorded["device"]
    return Numerics.resolve(device, recorded["precision"], recorded["channels_last"])


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the measurement agrees with the record, 1 if not or if it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.remeasure", description="Measure a stored network again."
    )
    parser.add_argument("key", help="a victim's key, or that of a run with save_purified=true")
    parser.add_argument("--store-dir", default=os.environ.get("BACKDOOR_BENCH_STORE", "./store"))
    parser.add_argument("--data-dir", default=os.environ.get("BACKDOOR_BENCH_DATA"))
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; by default as recorded, if it is here")
    parser.add_argument("--threads", type=int, help="of the CPU; by default as recorded, if there are as many cores")
    parser.add_argument("--trust", nargs="*", default=[], metavar="PACKAGE")
    options = parser.parse_args(arguments)
    try:
        result = remeasure(
            Store(options.store_dir), options.key, options.data_dir, options.device, options.trust, options.threads
        )
    except BenchError as error:
        progress.say(f"error: {error}")
        return 1
    console = Console(highlight=False)
    for name, before, now in result.pairs:
        console.print(f"{name.upper().replace('_', ' ')}: recorded {percent(before)} %, measured {percent(now)} %")
    where = "in the recorded setting" if result.same_setting else "in another setting (device, threads or versions)"
    verdict = "agrees" if result.agrees else "does NOT agree"
    progress.say(f"{verdict}: largest difference {100 * result.difference:.3f} points {where}")
    return int(not result.agrees)


if __name__ == "__main__":
    sys.exit(main())
