"""Which names tensors come under, and what is said of those that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model.torchvision import TorchvisionNetwork
from backdoor_bench.suspect.fit import compare, fit


@pytest.fixture
def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone."])
def test_a_prefix_is_found_and_what_lies_outside_is_left_aside(prefix, small, capsys) -> None:
    tensors = {f"{prefix}{name}": torch.rand_like(value.float()) for name, value in small.state_dict().items()}
    if prefix:
        tensors["criterion.weight"] = torch.ones(3)
    names = fit(small, tensors, "x.pt")
    assert names["0.weight"] == f"{prefix}0.weight"
    assert torch.equal(small.state_dict()["0.weight"], tensors[f"{prefix}0.weight"])
    assert ("x.pt: left aside criterion.weight" in capsys.readouterr().err) == bool(prefix)


def test_torchvisions_names_fit_our_wrapper_of_it() -> None:
    with torch.device("meta"):
        theirs, ours = resnet18(num_classes=7), TorchvisionNetwork("resnet18", 7)
    match = compare(ours, theirs.state_dict())
    assert match.differences == []
    assert match.names["backbone.fc.weight"] == "fc.weight"
    assert len(match.names) == match.count == 122


def test_differences_are_listed_and_nothing_is_loaded(small) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    tensors = {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(5), "1.weight": torch.ones(4),
               "1.bias": torch.ones(4), "1.running_mean": torch.ones(4), "more\x07": torch.ones(2, 2)}  # fmt: skip
    with pytest.raises(IncompatibleError) as caught:
        fit(small, tensors, "x.pt")
    first, *others = str(caught.value).splitlines()
    assert first.startswith("x.pt does not fit Sequential; 3 differences from its 7 tensors")
    assert [line.strip() for line in others] == [
        "0.bias: expected (4), came (5)",
        "1.running_var: expected (4), came nothing",
        r"more\x07: expected nothing, came (2, 2)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
