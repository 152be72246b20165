"""What a training starts from: a file's weights, by content; absent or wrong ones are an error, never random ones."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from backdoor_bench import progress
from backdoor_bench.bench import Bench, make_model, start_model
from backdoor_bench.errors import ConfigError, IncompatibleError, UntrustedError
from backdoor_bench.model import start
from backdoor_bench.model.preact_resnet18 import PreActResNet18
from backdoor_bench.store import Store, identity

Compose = Callable[..., dict[str, Any]]
SMALLEST = "shufflenet_v2_x0_5"


def saved(path: Path, num_classes: int, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = PreActResNet18(num_classes, width=2, **options).state_dict()
    safetensors.torch.save_file(tensors, path)
    return path, tensors


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def test_a_victim_starts_from_the_files_weights(compose: Compose, tmp_path: Path, said: list[str]) -> None:
    """Trained at a rate of zero it still has them; only the statistics of BatchNorm move."""
    file, tensors = saved(tmp_path / "weights.safetensors", 10)
    bench = Bench(Store(tmp_path / "store"))
    plan = bench.plan(compose(f"model.weights={file}", "recipe.epochs=1", "recipe.optimizer.lr=0"))
    data = bench.data(plan)
    network = bench.victim(plan, data).network
    stored = network.state_dict()
    parameters = dict(network.named_parameters())
    assert parameters
    assert all(torch.equal(value, tensors[name]) for name, value in parameters.items())
    file.unlink()  # whoever has the victim needs the file no more
    assert torch.equal(
        Bench(bench.store).victim(plan, data).network.backbone.conv1.weight, stored["backbone.conv1.weight"]
    )


def test_the_content_of_a_file_is_in_the_key_and_its_place_is_not(compose: Compose, tmp_path: Path) -> None:
    first, _ = saved(tmp_path / "first.safetensors", 10)
    second, _ = saved(tmp_path / "second.safetensors", 10)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(first, moved)
    bench = Bench(Store(tmp_path / "store"))
    keys = [bench.plan(compose(f"model.weights={file}")).victim_key for file in (first, second, moved)]
    assert keys[0] == keys[2]
    assert len({*keys, bench.plan(compose()).victim_key}) == 3
    hashed = bench.plan(compose(f"model.weights={first}")).victim_identity["model"]
    assert hashed["weights_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_networks_that_start_from_random_weights_keep_their_keys(compose: Compose, tmp_path: Path) -> None:
    """As they were before there was anything else to start from: long trainings lie in stores."""
    plan = Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "recipe.epochs=15", "recipe.width=8"))
    assert plan.victim_identity["model"] == {
        "_target_": "backdoor_bench.model.preact_resnet18.PreActResNet18",
        "width": 8,
        "mean": [0.305, 0.305, 0.305],
        "std": [0.331, 0.331, 0.331],
    }
    assert plan.victim_key == "35a232ef3775ff4c3fd7"
    vgg = identity.victim_identity(compose("model=vgg19_bn"), plan.manifest, plan.numerics)["model"]
    assert vgg.keys() == {"_target_", "mean", "std"}
    assert vgg["_target_"] == "backdoor_bench.model.vgg19_bn.VGG19BN"


def test_a_head_for_other_classes_stays_random_and_that_is_said(
    tmp_path: Path, compose: Compose, said: list[str]
) -> None:
    file, tensors = saved(tmp_path / "weights.safetensors", 7)
    node = compose(f"model.weights={file}")["model"]
    torch.manual_seed(0)
    random = make_model(node, 10)
    torch.manual_seed(0)
    network = start_model(node, 10)
    own = network.state_dict()
    assert torch.equal(own["backbone.linear.weight"], random.state_dict()["backbone.linear.weight"])
    assert all(torch.equal(own[name], value) for name, value in tensors.items() if "linear" not in name)
    (line,) = said
    assert line == (
        f"model.weights={file}: weights.safetensors has 7 classes, preact_resnet18 here 10; its head "
        "(backbone.linear.weight, backbone.linear.bias) starts from random weights"
    )


def test_a_head_that_is_made_of_zeros_is_not_called_random(tmp_path: Path, compose: Compose, said: list[str]) -> None:
    """As torchvision makes a ViT's."""
    file, _ = saved(tmp_path / "weights.safetensors", 7)
    network = PreActResNet18(10, width=2)
    for value in network.backbone.linear.parameters():
        nn.init.zeros_(value)
    start.load(network, compose(f"model.weights={file}")["model"])
    assert not network.backbone.linear.weight.any()
    assert said[0].endswith("its head (backbone.linear.weight, backbone.linear.bias) starts from zeros")


def test_an_attackers_own_width_starts_from_random_weights(tmp_path: Path, compose: Compose) -> None:
    file, tensors = saved(tmp_path / "weights.safetensors", 10)
    node = compose(f"model.weights={file}")["model"]
    assert start_model(node, 10, width=3).backbone.linear.in_features == 24
    assert torch.equal(start_model(node, 10).backbone.conv1.weight, tensors["backbone.conv1.weight"])


def test_what_does_not_fit_is_listed_by_name_and_shape(tmp_path: Path, compose: Compose) -> None:
    file, _ = saved(tmp_path / "weights.safetensors", 10, blocks=(1, 2, 2, 2))
    node = compose(f"model.weights={file}", "model.width=3")["model"]
    with pytest.raises(
        IncompatibleError, match=r"(?s)model\.weights=.*backbone\.conv1\.weight.*\(3, 3, 3, 3\).*\(2, 3"
    ):
        start_model(node, 10)


def test_a_file_that_is_absent_or_no_weights_is_an_error(tmp_path: Path, compose: Compose) -> None:
    missing = compose(f"model.weights={tmp_path / 'none.pt'}")["model"]
    with pytest.raises(ConfigError, match=rf"no such file \(looked for {tmp_path / 'none.pt'}\)"):
        start_model(missing, 10)
    whole = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), whole)  # a pickled module, not its tensors
    with pytest.raises(UntrustedError, match="was not read"):
        start_model(compose(f"model.weights={whole}")["model"], 10)


# -- torchvision's published weights ---------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Weights for the smallest network of torchvision, as if published; the cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    tensors = torchvision.models.get_model(SMALLEST, num_classes=1000).state_dict()
    file = tmp_path / "net.pth"
    torch.save(tensors, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(tmp_path / f"shufflenet-{sha256[:8]}.pth")
    weights = {"IMAGENET1K_V1": SimpleNamespace(url=f"file://{file}")}
    fake = SimpleNamespace(__members__=weights)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: fake)
    cached = tmp_path / "home" / "hub" / "checkpoints" / file.name
    return SimpleNamespace(file=file, sha256=sha256, tensors=tensors, cached=cached)


def pretrained(compose: Compose, *overrides: str) -> dict[str, Any]:
    node: dict[str, Any] = compose("model=torchvision", f"model.name={SMALLEST}", "model.pretrained=true", *overrides)[
        "model"
    ]
    return node


def test_pretrained_weights_come_from_the_cache(compose: Compose, published: SimpleNamespace, said: list[str]) -> None:
    published.cached.parent.mkdir(parents=True)
    shutil.copy(published.file, published.cached)
    own = start_model(pretrained(compose), 10).backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in published.tensors.items() if not name.startswith("fc."))
    assert "has 1,000 classes, shufflenet_v2_x0_5 here 10" in said[0]


def test_pretrained_weights_that_are_not_there_are_an_error_that_says_where(
    compose: Compose, published: SimpleNamespace
) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.pretrained=true: the weights are not there \(looked for {published.cached}"
    ):
        start_model(pretrained(compose), 10)


def test_pretrained_weights_are_fetched_only_when_asked(compose: Compose, published: SimpleNamespace) -> None:
    start_model(pretrained(compose, "download=true"), 10)
    assert published.cached.read_bytes() == published.file.read_bytes()


def test_pretrained_weights_of_another_content_are_refused(compose: Compose, published: SimpleNamespace) -> None:
    published.cached.parent.mkdir(parents=True)
    torch.save({"other": torch.zeros(3)}, published.cached)
    with pytest.raises(ConfigError, match=rf"expected {published.sha256[:8]}: it is damaged or another file"):
        start_model(pretrained(compose), 10)


def test_the_key_of_pretrained_weights_needs_no_file(compose: Compose, published: SimpleNamespace) -> None:
    hashed = start.hashed(pretrained(compose))
    assert hashed["weights_sha256"] == published.sha256[:8]
    assert not {"pretrained", "weights", "download"} & hashed.keys()
    assert "weights_sha256" not in start.hashed(pretrained(compose, "model.pretrained=false"))


def test_a_file_takes_the_place_of_pretrained_weights(tmp_path: Path, compose: Compose) -> None:
    """vit_b_16 is pretrained unless told otherwise."""
    file, _ = saved(tmp_path / "weights.safetensors", 10)
    node = compose("model=vit_b_16")["model"]
    assert start.find(node).path.name == "vit_b_16-c867db91.pth"
    assert start.find(node).digest == "c867db91"
    assert start.find(compose("model=vit_b_16", f"model.weights={file}")["model"]).path == file
    assert start.find(compose("model=vit_b_16", "model.pretrained=false")["model"]) is None


def test_weights_by_name_and_networks_without_any(compose: Compose) -> None:
    second = compose("model=wide_resnet", "model.pretrained=IMAGENET1K_V2")["model"]
    assert start.find(second).path.name == "wide_resnet50_2-9ba9bcbe.pth"
    with pytest.raises(ConfigError, match=r"unknown weights of resnet18 'IMAGENET1K_V3'\. Did you mean IMAGENET1K_V1"):
        start.find(compose("model=resnet18", "model.pretrained=IMAGENET1K_V3")["model"])
    with pytest.raises(ConfigError, match=r"no weights of preact_resnet18; give a file with model\.weights=FILE"):
        start.find(compose("+model.pretrained=true")["model"])
