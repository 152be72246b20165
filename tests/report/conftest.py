"""Records as a store has them, made up: the smallest that a report reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.report.frame import Records
from backdoor_bench.store import files
from tests.report.figures import make

RECORD: dict[str, Any] = {
    "format": 1,
    "key": "k0",
    "victim": "v0",
    "started": "2026-01-01T00:00:00Z",
    "dataset": "cifar10",
    "variant": "cifar10",
    "architecture": "preact_resnet18",
    "attack": "badnet",
    "poisoning_ratio": 0.1,
    "defense": "ft",
    "assumes": [],
    "spc": None,
    "clean_ratio": 0.05,
    "seed": 0,
    "repetition": 0,
    "preset": "made_up",  # conf/ has none such, so a method's own options are those of most records
    "numerics": {"device": "cpu", "precision": "32-true", "channels_last": True},
    "environment": {"threads": 1, "revision": "abc"},
    "config": {
        "dataset": {"name": "cifar10", "augmentation": {"flip": True}},
        "model": {"_target_": "backdoor_bench.model.preact_resnet18.PreActResNet18", "width": 64, "mean": [0.5]},
        "recipe": {
            "epochs": 100, "batch_size": 128, "width": 64, "lengths": {}, "optimizer": {"lr": 0.01},
            "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"},
        },
        "attack": {"_target_": "backdoor_bench.attack.badnet.BadNet", "poisoning_ratio": 0.1, "size": None,
                   "labels": "all_to_one", "target_label": 0},
        "defense": {
            "_target_": "backdoor_bench.defense.Defense", "name": "ft", "assumes": [], "requires": [], "epochs": 20,
            "use_validation": "hold_out",
            "stages": {"finetune": {"epochs": 20, "batch_size": 256, "optimizer": {"lr": 0.002}}},
        },
        "clean_from": "unpoisoned",
    },
    "status": "ok",
    "victim_seconds": 10.0,
    "effective_poisoning_ratio": 0.1,
    "weak_attack": False,
    "before": {"acc": 0.9, "asr": 0.95, "ra": 0.04},
    "stages": [{"name": "finetune", "seconds": 2.0, "changed": True, "acc": 0.88, "asr": 0.3, "ra": 0.6,
                "report": {"a": 1}, "process_peak_mib_so_far": 100.0}],
    "clean": {"train": 2250, "validation": 250, "replaced": 3, "from": "unpoisoned"},
    "acc": 0.88, "asr": 0.3, "ra": 0.6, "der": 0.815, "arr": 0.02222, "rdr": 0.33333,
    "process_peak_mib_so_far": 120.0,
    "seconds": 12.0,
}  # fmt: skip

Write = Callable[..., Path]


def changed(changes: Mapping[str, Any], base: Mapping[str, Any] = RECORD) -> dict[str, Any]:
    """A copy with some values changed; ``a__b=1`` reaches into it, a defense's name is its configuration's too."""
    record: dict[str, Any] = copy.deepcopy(dict(base))
    for path, value in changes.items():
        *places, last = path.split("__")
        node = record
        for place in places:
            node = node[place]
        node[last] = value
    if record["config"].get("defense"):
        record["config"]["defense"]["name"] = record["defense"]
    if record["defense"] is None:
        record |= {"spc": None, "clean_ratio": None, "stages": []}
        record["config"]["defense"] = None
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def write(folder: Path) -> Write:
    """Write one record: ``write(key="k1", asr=0.5)``, ``write(key="k1", attempt=2)``; returns its file."""

    def make(attempt: int = 1, **changes: Any) -> Path:
        record = files.seal(changed(changes))
        path = folder / "runs" / record["key"] / f"{attempt:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1))
        return path

    return make


@pytest.fixture(scope="module")
def many() -> Records:
    """Enough runs for every figure: 3 defenses, one of them an oracle, and two of everything that is split by."""
    rows, stages = [], []
    for defense, assumes in (("ft", ""), ("fp", ""), ("gradprune_oracle", "trigger")):
        for attack, kind in (("badnet", "badnet.BadNet"), ("wanet", "wanet.WaNet")):
            options = json.dumps({"_target_": f"backdoor_bench.attack.{kind}"})
            for n in range(6):
                k = (0.05, 0.1)[n == 5]
                stages.append((len(rows), "prune", {"pruned": int(100 * k), "units": 100}))
                rows.append(
                    {"defense": defense, "assumes": assumes, "attack": attack, "attack_options": options,
                     "asr": 0.1 * n, "rdr": 0.12 * n, "arr": 0.01 * n, "acc": 0.9 - 0.01 * n,
                     "clean_ratio": (0.05, 0.1)[n % 2], "poisoning_ratio": (0.1, 0.05)[n // 3],
                     "victim": f"{attack}{n // 3}",
                     "architecture": ("preact_resnet18", "vgg19_bn")[n % 2], "dataset": ("cifar10", "gtsrb")[n // 3],
                     "defense_options": json.dumps({"stages": {"prune": {"k": k}}}), "repetition": n}
                )  # fmt: skip
    # What lines need: runs that differ from a first one in a single thing.
    for n, change in enumerate(
        ({}, {"poisoning_ratio": 0.05}, {"clean_ratio": 0.1}, {"k": 0.1}, {"architecture": "vgg19_bn"})
    ):
        k = change.pop("k", 0.05)
        stages.append((len(rows), "prune", {"pruned": int(100 * k), "units": 100}))
        options = json.dumps({"stages": {"prune": {"k": k}}})
        rows.append({"defense": "fp", "attack": "sig", "victim": f"x{n}", "defense_options": options, **change})
    return make(*rows, stages=stages)
