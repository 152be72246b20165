"""Another data set that a method needs: declared in YAML, known by its images, refused where it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_bench.attack import AttackerView, Trigger
from backdoor_bench.attack.badnet import BadNet, PatchTrigger
from backdoor_bench.bench import Bench
from backdoor_bench.dataset import Dataset
from backdoor_bench.errors import BenchError, ConfigError, DataError
from backdoor_bench.remeasure import remeasure
from backdoor_bench.store import Store, identity

HERE = __name__


class Outsider(BadNet):
    """Its patch has the mean colour of another data set's first class."""

    def __init__(self, outside: Dataset, **common: Any) -> None:
        super().__init__(**common)
        self.outside = outside

    def prepare(self, trigger: Trigger, view: AttackerView) -> None:
        assert isinstance(trigger, PatchTrigger)
        others = view.outside(self.outside)
        assert others.images.shape[2:] == view.train.images.shape[2:]
        colour = others[others.labels == 0].images.float().mean((0, 2, 3)) / 255
        trigger.patch.copy_(colour.round(decimals=2)[:, None, None].expand_as(trigger.patch))


class Somewhere(Dataset):
    """A data set to be named."""


def arrays(path: Path, level: int) -> str:
    """24 images of 12x16 in three classes, of one grey level each."""
    images = np.full((24, 12, 16, 3), level, np.uint8)
    images[:, 0, 0] = np.arange(24)[:, None]  # all different
    np.savez(path, x_train=images, y_train=np.arange(24) % 3, x_test=images[:6], y_test=np.arange(6) % 3)
    return str(path)


@pytest.fixture
def outsider(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(root: str, *overrides: str) -> dict[str, Any]:
        chosen = ["+attack=badnet", "+dataset@attack.outside=npz", f"attack.outside.root={root}"]
        config = compose(*chosen, f"data_dir={tmp_path / 'data'}", "dataset.max_test=60", *overrides)
        assert config["attack"]["outside"]["_target_"].endswith("Npz")
        return {**config, "attack": {**config["attack"], "_target_": f"{HERE}.Outsider"}}

    return make


def test_a_key_knows_it_by_its_images(outsider: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    bench = Bench(Store(tmp_path / "store"))
    one = bench.plan(outsider(arrays(tmp_path / "one.npz", 100)))
    moved = bench.plan(outsider(arrays(tmp_path / "moved.npz", 100), f"data_dir={tmp_path / 'elsewhere'}"))
    brighter = bench.plan(outsider(arrays(tmp_path / "brighter.npz", 200)))
    assert one.victim_key == moved.victim_key != brighter.victim_key
    told = one.victim_identity["attack"]["outside"]
    assert told == {"train_sha256": bench.manifest({"dataset": one.config["attack"]["outside"]}).train_sha256}
    assert one.config["attack"]["outside"]["root"] == str(tmp_path / "one.npz")  # the record says where it was


def test_a_victim_trained_with_it_is_measured_again(outsider: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    bench = Bench(Store(tmp_path / "store"))
    plan = bench.plan(outsider(arrays(tmp_path / "one.npz", 102)))
    victim = bench.victim(plan, bench.data(plan))
    assert victim.trigger is not None
    assert torch.equal(victim.trigger.get_buffer("patch"), torch.full((3, 3, 3), 0.4))
    (tmp_path / "one.npz").unlink()
    again = remeasure(bench.store, plan.victim_key, trust=[HERE])
    assert again.agrees
    stored = Bench(bench.store).plan({**plan.config, "victim": plan.victim_key, "trust": [HERE]})
    assert stored.victim_key == plan.victim_key


def test_what_is_not_there_is_refused_when_planning(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = compose("+attack=badnet", "+dataset@attack.outside=cifar100", f"data_dir={tmp_path}")
    config["attack"]["_target_"] = f"{HERE}.Outsider"
    with pytest.raises(DataError, match=r"^attack\.outside: cifar100 is not there\. Looked for"):
        Bench(Store(tmp_path / "store")).plan(config)


def test_it_is_found_wherever_a_node_has_it() -> None:
    node = {"stages": {"distil": {"_target_": "builtins.dict", "sets": [{"_target_": f"{HERE}.Somewhere"}]}}}
    asked: list[str] = []

    def told(path: str, _: Any) -> Any:
        asked.append(path)
        return SimpleNamespace(train_sha256="5e7")

    kept = identity.by_content(node, told, "defense")
    assert asked == ["defense.stages.distil.sets.0"]
    assert kept == {"stages": {"distil": {"_target_": "builtins.dict", "sets": [{"train_sha256": "5e7"}]}}}


def test_the_runs_own_data_set_is_no_other(outsider: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = outsider(arrays(tmp_path / "one.npz", 100))
    own = {**config["attack"], "outside": config["dataset"]}
    with pytest.raises(ConfigError, match=r"attack\.outside is digits, the run's own; name another, e\.g\. "):
        Bench(Store(tmp_path / "store")).plan({**config, "attack": own})


def test_an_attack_without_one_says_so(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="outside"):
        Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "+dataset@attack.outside=digits"))
