"""What every defense and every stage promises, for each YAML leaf in conf/defense and conf/stage."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from backdoor_bench import config
from backdoor_bench.attack.badnet import BadNet
from backdoor_bench.defense import Defense
from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView, Stage

DEFENSES, STAGES = (
    sorted(path.stem for path in (config.directory() / group).glob("*.yaml")) for group in ("defense", "stage")
)
TESTS = Path(__file__).parents[1]


@pytest.fixture(params=DEFENSES)
def node(request: pytest.FixtureRequest, compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The resolved ``defense`` node of the composed configuration, at short lengths."""
    made: dict[str, Any] = compose(f"+defense={request.param}")["defense"]
    assert made["name"] == request.param
    return made


@pytest.fixture
def view(node: dict[str, Any], defender_view: DefenderView) -> DefenderView:
    """With what the defense says that it assumes, and nothing else of the attacker's."""
    known = {"trigger": {"known_trigger": BadNet().trigger((32, 32))}, "target_label": {"known_target": 0}}
    for privilege in node["assumes"]:
        defender_view = replace(defender_view, **known[privilege])
    return defender_view


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_has_a_test(name: str) -> None:
    texts = [path.read_text() for path in (TESTS / "defense").glob("test_*.py")]
    assert any(re.search(rf"defense={name}\b", text) for text in texts), f"no file in tests/defense has +defense={name}"


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_a_module_and_a_test(name: str) -> None:
    leaf = OmegaConf.load(config.directory() / "stage" / f"{name}.yaml")
    if "_target_" not in leaf:  # other values of another leaf
        assert leaf.defaults[0] in STAGES
        return
    module, _, kind = leaf["_target_"].rpartition(".")
    assert module.startswith("backdoor_bench.stage.")
    assert issubclass(getattr(importlib.import_module(module), kind), Stage)
    test = TESTS / "stage" / f"test_{module.rpartition('.')[2]}.py"
    assert test.is_file(), f"conf/stage/{name}.yaml: {test.name} is not there"


def run(node: dict[str, Any], network: nn.Module, view: DefenderView) -> dict[str, torch.Tensor]:
    """Every stage, looked at as it leaves the network; the ``state_dict`` of the last."""
    asked = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    defense: Defense = config.make(node)
    for result in defense.run(network, view):
        torch.rand(7)  # what a measurement draws must not matter
        for name, parameter in network.named_parameters():
            assert parameter.grad is None, f"{result.name} leaves a gradient of {name}"
            assert parameter.requires_grad is asked.get(name, parameter.requires_grad), (result.name, name)
        for name, module in network.named_modules():
            hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            assert not hooks, f"{result.name} leaves a hook on {name}"
        assert not any(module.training for module in network.modules()), f"{result.name} leaves train mode"
    logits = network(view.example)
    assert logits.shape == (2, view.num_classes)
    assert bool(logits.isfinite().all())
    return network.state_dict()


def test_leaves_a_network_fit_to_be_handed_on_and_the_same_each_time(
    node: dict[str, Any], view: DefenderView, network: nn.Module
) -> None:
    held = [tensor.clone() for part in (view.train, view.validation) for tensor in (part.images, part.labels)]
    twin = copy.deepcopy(network)
    first = run(node, network, view)
    torch.rand(3)
    second = run(node, twin, view)
    assert first.keys() == second.keys()
    assert not [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    still = [tensor for part in (view.train, view.validation) for tensor in (part.images, part.labels)]
    assert all(map(torch.equal, held, still)), "the clean images were changed"


def test_each_stage_can_be_left_out_or_is_said_to_be_needed(
    node: dict[str, Any], view: DefenderView, network: nn.Module
) -> None:
    for name, stage in node["stages"].items():
        skipped = {**stage, "_target_": "backdoor_bench.stage.skip.Skip"}
        without = {**node, "stages": {**node["stages"], name: skipped}}
        needed = ""
        try:
            run(without, copy.deepcopy(network), view)
        except ConfigError as error:
            needed = str(error)
        assert not needed or re.search(rf"stage '\w+' of {node['name']} needs a .*no stage before it gives", needed)
