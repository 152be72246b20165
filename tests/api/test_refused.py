"""purify(): what it refuses, and what it remarks on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backdoor_bench
from backdoor_bench.errors import ConfigError, DataError, IncompatibleError
from tests.api.own import CLASSES, FAST, Own, own


class Tuple(Own):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class AuxiliaryInTraining(Own):
    def forward(self, x: Tensor) -> Any:
        return (super().forward(x), x) if self.training else super().forward(x)


class Maps(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


class Detached(Own):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Uncopied(Own):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("mine alone")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Tuple(), "Tuple returns a tuple; expected logits alone"),
        (lambda: AuxiliaryInTraining(), "AuxiliaryInTraining, in train mode, returns a tuple"),
        (lambda: Maps(), r"returns torch.float32 of shape \(4, 8, 7, 7\) for 4 images"),
        (lambda: Detached(), "the logits of Detached have no gradient"),
        (lambda: Uncopied(), "cannot be copied .*mine alone"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "has layers that get their shapes in the first"),
        (lambda: own(channels=4), r"cannot be run on float images of shape \(4, 3, 16, 16\)"),
        (lambda: torch.jit.script(own()), "TorchScript program cannot be taken apart"),
        (lambda: {"weight": torch.ones(1)}, "expected an nn.Module that gives logits, got dict"),
        (lambda: nn.Flatten(), "parameters are on nowhere"),
        (lambda: own().to("meta"), "parameters are on meta"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)), "unibp needs BatchNorm2d"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_refused(network, message, images, labels) -> None:
    with pytest.raises(IncompatibleError, match=message):
        backdoor_bench.purify(network(), images, labels, **FAST)


def test_grey_images_for_a_network_of_rgb_images_are_refused_with_what_to_do(images, labels) -> None:
    with pytest.raises(IncompatibleError, match=r"of shape \(4, 1, 16, 16\).*images\.expand\(-1, 3, -1, -1\)"):
        backdoor_bench.purify(own(), images[:, :1], labels, "ft", **FAST)


def test_probabilities_are_noticed(images, labels, capsys) -> None:
    backdoor_bench.purify(nn.Sequential(own(), nn.Softmax(1)), images, labels, "ft", **FAST)
    assert "seems to give probabilities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"are in \[0.*, 25\d\]; if they are normalised"),
        (lambda x, y: (x - 0.5, y), r"float images are in \[0, 1\], these are in \[-0.5"),
        (lambda x, y: (x * np.nan, y), "float images are in"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), "put the channels first"),
        (lambda x, y: (x[0], y), r"expected \(N, 3, H, W\)"),
        (lambda x, y: (x.mul(255).int(), y), "expected uint8, or float in"),
        (lambda x, y: (["a", "b"], y), "images: expected a tensor or an array"),
        (lambda x, y: (x, y[:-1]), r"expected 40 whole numbers, one per image, got torch.int64 \(39,\)"),
        (lambda x, y: (x, y.float()), "whole numbers"),
        (lambda x, y: (x, y + 1), "the network has classes 0 to 3, these are 1 to 4"),
        (lambda x, y: (x, y - 1), "these are -1 to 2"),
        (lambda x, y: (x[:4], y[:4]), "4 images: expected two or more of a class"),
        (lambda x, y: (x[:0], y[:0]), "0 images"),
    ],
)
def test_images_that_cannot_be_are_refused(change, message, images, labels) -> None:
    with pytest.raises(DataError, match=message):
        backdoor_bench.purify(own(), *change(images, labels), "ft", **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defense": "unibpp"}, "unknown defense 'unibpp'. Did you mean unibp"),
        ({"epochz": 3}, "unknown option of unibp 'epochz'. Did you mean epochs"),
        ({"stages": {"prune": {"rato": 1}}}, "unknown option of unibp 'stages.prune.rato'.*stages.prune.value"),
        ({"stages": {"prun": {"value": 1}}}, "unknown option of unibp 'stages.prun.value'. Did you mean stages.prune"),
        ({"mean": [0.5]}, r"mean=\[0.5\]: expected 3 numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "expected positive numbers"),
        ({"mean": "imagenet"}, "mean=imagenet: expected 3 numbers, one per channel"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"device": "tpu"}, "device=tpu: expected auto"),
        ({"defense": "gradprune_oracle"}, "assumes the attacker's trigger, and purify"),
        ({"defense": "ft", "assumes": ["target_label"]}, "ft assumes the attacker's target label, and purify"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message, images, labels) -> None:
    with pytest.raises((ConfigError, IncompatibleError), match=message):
        backdoor_bench.purify(own(), images, labels, **{**FAST, **options})
