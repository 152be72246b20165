"""``model=timm:NAME``: wherever configurations compose, for every name that timm has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backdoor_bench import config, overrides
from backdoor_bench.bench import make_model
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import architecture
from backdoor_bench.model.start import hashed

Compose = Callable[..., dict[str, Any]]


def test_a_name_is_a_choice_of_the_group(compose: Compose) -> None:
    node = compose("model=timm:resnet18.a1_in1k")["model"]
    assert node["_target_"] == "backdoor_bench.model.timm.TimmNetwork"
    assert architecture(node) == "timm:resnet18.a1_in1k"
    assert node["mean"] == [0.305, 0.305, 0.305]


def test_options_of_the_network(compose: Compose) -> None:
    pytest.importorskip("timm")
    node = compose("model=timm:test_vit", "model.options={img_size:32,patch_size:8}")["model"]
    network = make_model(node, 10)
    assert network.backbone.patch_embed.num_patches == 16
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert hashed(node)["options"] == {"img_size": 32, "patch_size": 8}
    assert "options" not in hashed(compose("model=timm:test_vit")["model"])
    for options, message in (
        ("{patch_sise:8}", "patch_sise"),
        ("{checkpoint_path:x}", "checkpoint_path is none of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_model(compose("model=timm:test_vit", f"model.options={options}")["model"], 10)


def test_without_timm_the_error_says_what_to_install(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model=timm:resnet18 needs timm .*pip install 'backdoor_bench\[timm\]'"):
        make_model(compose("model=timm:resnet18")["model"], 10)


def test_a_network_of_timm(compose: Compose) -> None:
    pytest.importorskip("timm")
    network = make_model(compose("model=timm:test_resnet")["model"], 10)
    assert network.name == "timm:test_resnet"
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_network_of_one_size_gets_images_of_that_size(compose: Compose) -> None:
    pytest.importorskip("timm")
    network = make_model(compose("model=timm:test_vit")["model"], 10)
    assert network.backbone[0].side == 160
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_unknown_names_are_refused_with_close_matches(compose: Compose) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"unknown timm network 'resnt18'\. Did you mean resnet18"):
        overrides.prepare(["model=timm:resnt18"], config.directory())
    given = ["-m", "model=preact_resnet18,timm:resnet18", "+attack=badnet"]
    assert overrides.prepare(given, config.directory()) == given
    with pytest.raises(ConfigError, match="Invalid pretrained tag"):
        make_model(compose("model=timm:resnet18.nope")["model"], 10)
    with pytest.raises(ConfigError, match=r"model\.name=resnet18: expected timm:NAME"):
        make_model(compose("model=timm", "model.name=resnet18")["model"], 10)
