"""victim=: a network from a file or from the store, purified, measured, exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import backdoor_bench
from backdoor_bench import experiment, table
from backdoor_bench.bench import Bench, make_model
from backdoor_bench.errors import ConfigError, IncompatibleError, StoreError, UntrustedError
from backdoor_bench.store import Store, Stored

OWN = ("victim", "trigger", "mean", "std", "export")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def bench(store) -> Bench:
    return Bench(store)


@pytest.fixture
def victim(compose, bench) -> dict[str, Any]:
    """The record of a badnet victim in the store."""
    return dict(experiment.run(compose("+attack=badnet", "recipe.epochs=3"), bench).record)


@pytest.fixture
def weights(victim, store) -> dict[str, torch.Tensor]:
    stored = store.load("victims", victim["victim"])
    assert stored is not None
    return dict(stored.tensors["network"])


@pytest.fixture
def file(weights, tmp_path) -> Path:
    """The victim as BackdoorBench would have saved it: without our normalisation, under its names."""
    named = {
        re.sub(r"shortcut\.", "shortcut.0.", name.removeprefix("backbone.")): value for name, value in weights.items()
    }
    path = tmp_path / "attack_result.pt"
    torch.save({"model_name": "preactresnet18", "model": named, "num_classes": 10}, path)
    return path


NORMALISED = ("mean=[0.305,0.305,0.305]", "std=[0.331,0.331,0.331]")  # what conf/dataset/digits.yaml has


def test_keys_of_other_runs_are_what_they_were(compose, bench) -> None:
    """Long results lie in the store under them."""
    config = compose("+attack=badnet", "+defense=ft")
    older = {name: value for name, value in config.items() if name not in OWN}
    plan = bench.plan(config)
    assert bench.plan(older).key == plan.key
    assert not set(OWN) & set(plan.victim_identity)


def test_a_files_network_is_measured_as_it_was_and_has_no_asr(compose, bench, victim, file, capsys) -> None:
    config = compose("+defense=ft", f"victim={file}", *NORMALISED)
    done = experiment.run(config, bench)
    record = json.loads(Path(done.path).read_text())
    assert [record["before"][name] for name in ("acc", "asr", "ra")] == [victim["acc"], None, None]
    assert [record[name] for name in ("attack", "asr", "ra", "der", "rdr", "victim_seconds")] == [None] * 6
    assert record["victim_was"] == "given"
    assert record["given"]["file"] == "attack_result.pt"
    assert len(record["given"]["sha256"]) == 64
    assert record["clean"] == {"train": 1297, "validation": 145, "replaced": 0, "from": "all"}  # all that there are
    assert "images are normalised with mean=[0.305, 0.305, 0.305]" in capsys.readouterr().err
    table.print_run(record, done.path)
    said = capsys.readouterr().out
    for words in (
        "unknown attack / ft",
        "victim (given)",
        "ASR and RA not measured",
        "given: attack_result.pt, sha256",
    ):
        assert words in said


def test_a_file_out_of_a_store_is_said_to_have_a_key(compose, bench, store, victim, capsys) -> None:
    """By its key it comes with its normalisation; as a file it takes pixels in [0, 1]."""
    file = store.root / "victims" / victim["victim"] / "network.safetensors"
    experiment.run(compose(f"victim={file}"), bench)
    assert f"victim={victim['victim']} brings its normalisation and its attack" in capsys.readouterr().err


def test_the_run_is_known_by_the_files_content(compose, bench, file, tmp_path) -> None:
    def key(*overrides: str) -> str:
        return bench.plan(compose("+defense=ft", *overrides)).key

    first = key(f"victim={file}")
    copy = tmp_path / "copy.pth"
    copy.write_bytes(file.read_bytes())
    assert key(f"victim={copy}") == first
    assert key(f"victim={copy}", "mean=[0.5,0.5,0.5]") != first
    assert key(f"victim={copy}", "seed=5") == first
    assert key(f"victim={copy}", "spc=2") != first
    loaded = torch.load(copy, weights_only=True)
    loaded["model"]["linear.bias"] += 1
    torch.save(loaded, copy)
    assert key(f"victim={copy}") != first


def test_with_a_stored_trigger_its_asr_is_the_stored_victims(compose, bench, victim, file) -> None:
    """The same network with the same trigger, by another way."""
    for named in ((), ("+attack=badnet",)):
        config = compose(f"victim={file}", f"trigger={victim['victim']}", *named, *NORMALISED)
        record = experiment.run(config, bench).record
        assert (record["acc"], record["asr"], record["ra"]) == (victim["acc"], victim["asr"], victim["ra"])
        assert record["attack"] == "badnet"
        assert record["given"]["trigger"] == victim["victim"]


def test_a_stored_victim_is_the_run_that_trains_it(compose, bench, victim) -> None:
    """Its network, attack, recipe and seed come with it, so the key is the same."""
    plain = bench.plan(compose("+attack=badnet", "+defense=ft", "recipe.epochs=3"))
    named = bench.plan(compose("+defense=ft", f"victim={victim['victim']}", "model.width=64", "seed=9"))
    assert named.key == plain.key
    assert named.given is None
    record = experiment.run(compose(f"victim={victim['victim']}"), bench).record
    assert record["asr"] == victim["asr"]


def test_export_has_the_names_and_the_interface_it_came_with(compose, bench, file, tmp_path) -> None:
    out = tmp_path / "clean.safetensors"
    config = compose("+defense=ft", f"victim={file}", f"export={out}", "spc=10", *NORMALISED)
    record = experiment.run(config, bench).record
    came = torch.load(file, weights_only=True)["model"]
    purified = safetensors.torch.load_file(out)
    assert {name: value.dtype for name, value in purified.items()} == {n: v.dtype for n, v in came.items()}
    assert not torch.equal(purified["conv1.weight"], came["conv1.weight"])
    assert record["exported"] == str(out)
    again = experiment.run(compose(f"victim={out}", *NORMALISED), bench).record
    assert again["before"]["acc"] == record["acc"]
    card = out.with_suffix(".md").read_text()
    for words in (
        f"`attack_result.pt`, sha256 `{record['given']['sha256']}`", "it takes images normalised with these, as before",
        f"| ACC % | {100 * record['before']['acc']:.2f} | {100 * record['acc']:.2f} |", "ASR and RA: not measured",
        "355 held-out clean test images", "90 clean ones to train, 10 to validate", "network.load_state_dict",
    ):  # fmt: skip
        assert words in card
    # Asked for again, it is written again, though the record is there; over another file only with force.
    with pytest.raises(ConfigError, match="is there already"):
        experiment.run(config, bench)
    out.unlink()
    out.with_suffix(".md").unlink()
    assert not experiment.run(config, bench).found
    assert out.exists()


def test_a_file_without_counts_of_batches_gets_an_export_without_them(compose, bench, file, tmp_path) -> None:
    """BatchNorm of old files and of some exporters has none; the export can be read as what came."""
    loaded, out = torch.load(file, weights_only=True), tmp_path / "clean.safetensors"
    loaded["model"] = {k: value for k, value in loaded["model"].items() if not k.endswith("num_batches_tracked")}
    torch.save(loaded, file)
    config = compose("+defense=ft", f"victim={file}", f"export={out}", "spc=10", *NORMALISED)
    record = experiment.run(config, bench).record
    assert safetensors.torch.load_file(out).keys() == loaded["model"].keys()
    assert experiment.run(compose(f"victim={out}", *NORMALISED), bench).record["acc"] == record["acc"]


@pytest.mark.parametrize("suffix", ["safetensors", "ts"])
def test_bounds_are_exported_with_the_network(suffix, compose, bench, file, tmp_path) -> None:
    out = tmp_path / f"clean.{suffix}"
    config = compose("+defense=unit", f"victim={file}", f"export={out}", "spc=10", *NORMALISED)
    record = experiment.run(config, bench).record
    data = bench.data(bench.plan(config))
    inputs = (data.test.images.float() / 255 - 0.305) / 0.331
    network = backdoor_bench.load_purified(out) if suffix == "safetensors" else torch.jit.load(out)
    with torch.no_grad():
        right = (network(inputs).argmax(1) == data.test.labels).float().mean()
    assert float(right) == pytest.approx(record["acc"], abs=0.003)
    if suffix == "safetensors":  # and it can be purified once more
        again = experiment.run(compose(f"victim={out}", *NORMALISED), bench).record
        assert again["acc"] == record["acc"]


def test_a_stored_victims_export_names_its_trigger_and_its_asr(compose, bench, victim, tmp_path) -> None:
    out = tmp_path / "clean.safetensors"
    record = experiment.run(compose("+defense=ft", f"victim={victim['victim']}", f"export={out}"), bench).record
    card = out.with_suffix(".md").read_text()
    assert f"| ASR % | {100 * victim['asr']:.2f} | {100 * record['asr']:.2f} |" in card
    assert "trigger: badnet" in card
    assert "it takes pixels in [0, 1]" in card
    data = bench.data(bench.plan(compose()))
    with torch.no_grad():
        logits = backdoor_bench.load_purified(out)(data.test.images.float() / 255)
    assert float((logits.argmax(1) == data.test.labels).float().mean()) == pytest.approx(record["acc"], abs=0.003)


def test_accuracy_at_chance_is_a_loud_warning(compose, bench, file, capsys) -> None:
    """Without its normalisation, and with classes in another order."""
    loaded = torch.load(file, weights_only=True)
    for name in ("linear.weight", "linear.bias"):
        loaded["model"][name] = loaded["model"][name].roll(1, 0)
    torch.save(loaded, file)
    record = experiment.run(compose(f"victim={file}", *NORMALISED), bench).record
    assert record["victim_at_chance"]
    assert record["at_chance"]
    said = capsys.readouterr().err
    assert "WARNING: before any defense the network is right on" in said
    assert "Is the order of the classes (0, 1, 2, ...) the network's?" in said


def test_what_does_not_fit_is_listed_by_name_and_shape(compose, bench, file) -> None:
    config = compose("+defense=ft", f"victim={file}", "model.width=4")
    with pytest.raises(IncompatibleError) as caught:
        experiment.run(config, bench)
    said = str(caught.value)
    assert "does not fit PreActResNet18; 85 differences from its 102 tensors" in said
    assert "backbone.conv1.weight: expected (4, 3, 3, 3), came (2, 3, 3, 3)" in said
    assert "and 73 more" in said


KEY = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["+attack=badnet", "victim=FILE"], ConfigError, r"trigger of a file's network is not known.*trigger=KEY"),
        (["victim=FILE", f"trigger={KEY}"], StoreError, f"there is no victim {KEY}"),
        (["victim=FILE", "trigger=../x"], ConfigError, "no key of a stored victim"),
        (["+attack=blended", "victim=FILE", "trigger=VICTIM"], ConfigError, "was attacked by .*BadNet, not .*Blended"),
        (["+defense=ft", "victim=FILE", "save_purified=true"], ConfigError, "export=OUT.safetensors"),
        ([f"victim={KEY}"], ConfigError, "there is no such victim in"),
        (["victim=VICTIM", "dataset.name=other"], ConfigError, "was trained on digits.*add dataset=digits"),
        (["victim=VICTIM", "mean=[0.5,0.5,0.5]"], ConfigError, "mean= belongs to a file's network"),
        (["+attack=blended", "victim=VICTIM"], ConfigError, "leave .attack= out"),
        (["victim=VICTIM", "dataset.augmentation.flip=true"], ConfigError, "is another here"),
        (["std=[0.5,0.5,0.5]"], ConfigError, "std= belongs to a file's network"),
        (["+attack=badnet", "export=x.safetensors"], ConfigError, r"add a defense with \+defense=NAME"),
        (["+defense=ft", "victim=FILE", "export=x.zip"], ConfigError, "expected a name ending in .safetensors"),
        (["victim=nowhere.pt"], UntrustedError, "nowhere.pt cannot be read: No such file"),
        (["victim=FILE", "mean=[0.5]"], ConfigError, "expected three means"),
        (["victim=FILE", "mean=0.5"], ConfigError, r"mean=0.5: expected three numbers.*mean=\[0.5,0.5,0.5\]"),
        (["victim=FILE", "std=imagenet"], ConfigError, "std=imagenet: expected three numbers, one per channel"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_work(
    overrides, error, message, compose, bench, victim, file
) -> None:
    names = {"FILE": str(file), "VICTIM": victim["victim"]}
    given = [re.sub("FILE|VICTIM", lambda found: names[found.group()], text) for text in overrides]
    with pytest.raises(error, match=message):
        experiment.run(compose(*given), bench)


@pytest.mark.parametrize("part", ["model", "attack", "wrapped", "recipe"])
def test_a_stored_victim_that_names_foreign_code_is_refused(part, compose, bench, store, victim) -> None:
    """A store may be somebody's, too."""
    stored = store.load("victims", victim["victim"])
    assert stored is not None
    config = json.loads(json.dumps(stored.manifest["config"]))
    around: dict[str, str] = {}
    if part == "wrapped":
        config["attack"]["wrapped"] = around  # an attack around another one
    node = {**config, "recipe": config["recipe"]["optimizer"], "wrapped": around}[part]
    node["_target_"] = "subprocess.Popen"
    key = {"model": "a", "attack": "b", "recipe": "c", "wrapped": "d"}[part] * 20
    manifest = {name: value for name, value in stored.manifest.items() if name not in ("key", "files", "sha256")}
    store.save("victims", key, Stored(stored.tensors, {**manifest, "config": config}))
    with pytest.raises(UntrustedError, match=r"'subprocess\.Popen', which is in none of"):
        bench.plan(compose(f"victim={key}"))


def test_a_file_that_changed_since_it_was_planned_is_refused(compose, bench, file) -> None:
    plan = bench.plan(compose(f"victim={file}"))
    loaded = torch.load(file, weights_only=True)
    loaded["model"]["linear.bias"] += 1
    torch.save(loaded, file)
    with pytest.raises(UntrustedError, match="was changed since this run was planned"):
        experiment.run_plan(plan, bench)


def test_a_hostile_file_is_one_error_and_a_failed_record(compose, bench, tmp_path, store) -> None:
    path = tmp_path / "whole.pt"
    torch.save(make_model(compose()["model"], 10), path)
    config = compose("+defense=ft", f"victim={path}")
    with pytest.raises(UntrustedError, match=r"its pickle would call .*PreActResNet18"):
        experiment.run(config, bench)
    (failed,) = store.attempts(bench.plan(config).key)
    assert failed["status"] == "failed"
    assert failed["given"]["file"] == "whole.pt"
