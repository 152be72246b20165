"""A stored network is measured again to the last digit; what a stored file names is not executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_bench import environment, experiment, remeasure
from backdoor_bench.bench import Bench
from backdoor_bench.errors import StoreError, UntrustedError
from backdoor_bench.metric import Measurement
from backdoor_bench.remeasure import Remeasured
from backdoor_bench.store import Store, files


@dataclass(frozen=True)
class Done:
    """A finished run: its store, its record, and the configuration it came from."""

    store: Store
    record: dict[str, Any]
    config: dict[str, Any]

    @property
    def victim(self) -> str:
        return self.record["victim"]

    def folder(self, kind: str = "victims") -> Path:
        return self.store.root / kind / (self.victim if kind == "victims" else self.record["key"])


@pytest.fixture(scope="module")
def finished() -> Iterator[dict[str, Done]]:
    """Runs by name, each made once for all tests of this file."""
    return {}


@pytest.fixture
def done(compose: Callable[..., dict[str, Any]], finished: dict[str, Done], tmp_path_factory) -> Done:
    """BadNets on digits, fine-tuned for one epoch, the purified network kept."""
    if "ft" not in finished:
        store = Store(tmp_path_factory.mktemp("remeasure"))
        config = compose("+attack=badnet", "+defense=ft", "save_purified=true")
        finished["ft"] = Done(store, dict(experiment.run(config, Bench(store)).record), config)
    return finished["ft"]


@pytest.fixture
def tamper(done: Done) -> Iterator[Callable[..., None]]:
    """Change a stored manifest, with a seal that fits: ``tamper("victims", ["config", "attack", "_target_"], "x")``."""
    before: dict[Path, str] = {}

    def change(kind: str, place: list[Any], value: Any) -> None:
        path = done.folder(kind) / "manifest.json"
        before.setdefault(path, path.read_text())
        manifest = json.loads(path.read_text())
        node = manifest
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value
        path.write_text(json.dumps(files.seal(manifest)))

    yield change
    for path, text in before.items():
        path.write_text(text)


def test_a_victim_is_measured_again_exactly(done: Done) -> None:
    again = remeasure.remeasure(done.store, done.victim)
    assert again.recorded == again.measured == Measurement(**done.record["before"])
    assert again.same_setting
    assert again.agrees
    assert again.difference == 0


def test_a_purified_network_is_measured_again_exactly(done: Done) -> None:
    again = remeasure.remeasure(done.store, done.record["key"])
    assert again.measured == Measurement(*(done.record[name] for name in ("acc", "asr", "ra")))
    assert again.agrees


def test_a_clean_network_has_acc_alone(compose, tmp_path) -> None:
    store = Store(tmp_path)
    record = experiment.run(compose(), Bench(store)).record
    again = remeasure.remeasure(store, record["victim"])
    assert again.measured == Measurement(record["acc"])
    assert again.agrees


def test_an_unknown_key(done: Done) -> None:
    with pytest.raises(StoreError, match=r"no victim and no purified network 0123 in .*save_purified=true"):
        remeasure.remeasure(done.store, "0123")


def test_the_key_of_a_run_that_kept_nothing_leads_to_its_victim(compose, tmp_path) -> None:
    store = Store(tmp_path / "store")
    record = experiment.run(compose("+defense=ft"), Bench(store)).record
    with pytest.raises(StoreError, match=rf"save_purified=true; the victim of this run is {record['victim']}$"):
        remeasure.remeasure(store, record["key"])


def test_a_key_that_leads_elsewhere(done: Done, tamper) -> None:
    with pytest.raises(StoreError, match="is no key"):
        remeasure.remeasure(done.store, "..")
    tamper("purified", ["victim"], "../../precious")
    precious = done.store.root.parent / "precious"
    precious.mkdir(exist_ok=True)
    with pytest.raises(StoreError, match="is no key"):
        remeasure.remeasure(done.store, done.record["key"])
    assert precious.is_dir()


def test_a_victim_that_is_gone(done: Done, tamper) -> None:
    tamper("purified", ["victim"], "0123")
    with pytest.raises(StoreError, match=r"the victim 0123 of .* is not in"):
        remeasure.remeasure(done.store, done.record["key"])


@pytest.mark.parametrize(
    "place",
    [
        ["config", "model", "_target_"],
        ["config", "attack", "_target_"],
        ["config", "dataset", "_target_"],
        ["config", "dataset", "augmentation", "_target_"],
    ],
)
def test_foreign_code_in_a_victim_is_refused(done: Done, tamper, tmp_path: Path, place: list[str]) -> None:
    flag = tmp_path / "executed"
    tamper("victims", place, "os.system")
    tamper("victims", [*place[:-1], "_args_"], [f"touch {flag}"])
    for key in (done.victim, done.record["key"]):
        with pytest.raises(UntrustedError, match=r"'os\.system'.*nothing was executed"):
            remeasure.remeasure(done.store, key)
    assert not flag.exists()


def test_foreign_code_inside_a_node_is_refused(done: Done, tamper, tmp_path: Path) -> None:
    flag = tmp_path / "executed"
    for name, option in (("model", "width"), ("attack", "size"), ("dataset", "name")):
        tamper("victims", ["config", name, option], {"_target_": "os.system", "command": f"touch {flag}"})
        with pytest.raises(UntrustedError, match=r"os\.system"):
            remeasure.remeasure(done.store, done.victim)
        tamper("victims", ["config", name, option], done.config[name][option])
    assert not flag.exists()


def test_a_foreign_addition_is_refused(done: Done, tamper, tmp_path: Path) -> None:
    flag = tmp_path / "executed"
    entry = {"site": "backbone.pool", "kind": "os.system", "settings": {"command": f"touch {flag}"}}
    tamper("purified", ["additions"], [entry])
    with pytest.raises(UntrustedError, match=r"os\.system"):
        remeasure.remeasure(done.store, done.record["key"])
    assert not flag.exists()


def test_an_unsealed_change_is_damage(compose, tmp_path) -> None:
    store = Store(tmp_path)
    key = experiment.run(compose(), Bench(store)).record["victim"]
    path = store.root / "victims" / key / "manifest.json"
    path.write_text(path.read_text().replace("PreActResNet18", "PreActResNet34"))
    with pytest.raises(StoreError, match="no victim"):
        remeasure.remeasure(store, key)


def test_a_stored_file_downloads_nothing(done: Done, tamper) -> None:
    """It names a folder without data and asks for the network: torchvision is not called."""
    dataset = {"_target_": "backdoor_bench.dataset.cifar10.Cifar10", "name": "cifar10", "download": True}
    dataset["augmentation"] = done.config["dataset"]["augmentation"]
    tamper("victims", ["config", "dataset"], {**dataset, "data_dir": str(done.store.root / "nothing")})
    with pytest.raises(Exception, match="download=true"):
        remeasure.remeasure(done.store, done.victim)


def test_other_test_images_are_refused(done: Done, tamper) -> None:
    tamper("victims", ["test_sha256"], "0")
    with pytest.raises(StoreError, match=r"the test images of digits \(scikit-learn\) here are not those"):
        remeasure.remeasure(done.store, done.victim)


def test_tensors_that_do_not_fit(done: Done, tamper) -> None:
    tamper("victims", ["config", "model", "width"], 3)
    with pytest.raises(StoreError, match=f"the tensors of {done.victim} do not fit its configuration"):
        remeasure.remeasure(done.store, done.victim)


def test_another_setting_is_said(done: Done, monkeypatch) -> None:
    described = environment.describe()
    monkeypatch.setattr(environment, "describe", lambda: {**described, "revision": "another"})
    assert remeasure.remeasure(done.store, done.victim).same_setting
    monkeypatch.setattr(environment, "describe", lambda: {**described, "threads": 99})
    assert not remeasure.remeasure(done.store, done.victim).same_setting


def test_threads_are_as_recorded_unless_told_otherwise(done: Done, monkeypatch) -> None:
    recorded, other = torch.get_num_threads(), torch.get_num_threads() + 1
    with environment.threads(other):
        assert remeasure.remeasure(done.store, done.victim).same_setting
        assert not remeasure.remeasure(done.store, done.victim, threads=other).same_setting
        assert torch.get_num_threads() == other
    assert torch.get_num_threads() == recorded


def test_more_threads_than_cores_are_not_started(done: Done, tamper, monkeypatch) -> None:
    tamper("victims", ["environment", "threads"], 10**6)
    started = []
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    assert not remeasure.remeasure(done.store, done.victim).same_setting
    assert set(started) == {torch.get_num_threads()}


@pytest.mark.parametrize(
    ("recorded", "here", "asked", "expected"),
    [
        ("cpu", True, "auto", "cpu"),
        ("cpu", False, "auto", "cpu"),
        ("cuda", True, "auto", "cuda"),
        ("cuda", False, "auto", "cpu"),
        ("cuda", True, "cpu", "cpu"),
        ("cpu", True, "cuda", "cuda"),
    ],
)
def test_the_device_is_of_the_recorded_kind_if_that_is_here(
    monkeypatch, recorded: str, here: bool, asked: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    stored = {"device": recorded, "precision": "32-true", "channels_last": True}
    assert remeasure._numerics(stored, asked).device.type == expected


@pytest.mark.parametrize(
    ("measured", "same", "agrees"),
    [(0.9, True, True), (0.901, True, False), (0.901, False, True), (0.8985, False, True), (0.903, False, False)],
)
def test_agreement_is_exact_here_and_within_two_tenths_of_a_point_elsewhere(
    measured: float, same: bool, agrees: bool
) -> None:
    found = Remeasured(Measurement(0.95, 0.9, 0.05), Measurement(0.95, measured, 0.05), same)
    assert found.agrees is agrees
    assert found.difference == pytest.approx(abs(measured - 0.9))


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(done: Done, capsys) -> None:
    assert remeasure.main([done.victim, "--store-dir", str(done.store.root)]) == 0
    out, err = capsys.readouterr()
    acc = f"{100 * done.record['before']['acc']:.2f}"
    assert f"ACC: recorded {acc} %, measured {acc} %" in out
    assert "agrees: largest difference 0.000 points in the recorded setting" in err


def test_the_command_says_when_a_record_is_wrong(done: Done, tamper, capsys) -> None:
    tamper("victims", ["measured", "acc"], 0.123)
    assert remeasure.main([done.victim, "--store-dir", str(done.store.root)]) == 1
    assert "does NOT agree" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_in_one_message(done: Done, capsys) -> None:
    assert remeasure.main(["0123", "--store-dir", str(done.store.root)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no victim and no purified network 0123 in ")
    assert err.count("\n") == 1
