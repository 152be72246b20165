from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.errors import ConfigError
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.activeness_finetune import ActivenessFinetune, perturbation
from backdoor_bench.stage.finetune import Finetune


def stage(**options: Any) -> ActivenessFinetune:
    return ActivenessFinetune(
        **{"epochs": 1, "batch_size": 40, "optimizer": partial(torch.optim.SGD, lr=0.1), **options}
    )


def test_perturbation_by_hand() -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert [step.tolist() for step in perturbation(gradients, 0.5)] == [[pytest.approx(0.3)], [[0, pytest.approx(0.4)]]]
    by_tensor = perturbation(gradients, 0.5, "per_tensor")
    assert [step.tolist() for step in by_tensor] == [[0.5], [[0, 0.5]]]


@pytest.mark.parametrize("norm", ["global", "per_tensor"])
def test_a_zero_gradient_moves_nothing(norm: str) -> None:
    assert perturbation([torch.zeros(3)], 0.05, norm)[0].tolist() == [0, 0, 0]


def test_two_passes_on_a_single_weight_by_hand(defender_view: DefenderView) -> None:
    # One image, a network whose two logits are (w, 0): CE = log(1 + exp(-w)), gradient -1 / (1 + exp(w)).
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([self.w, torch.zeros(())]).expand(len(images), 2)

    network = Scalar()
    only_zero = defender_view.train[defender_view.train.labels == 0]
    tuning = stage(radius=0.5, alpha=0.7)
    tuning.train_network(network, defender_view, data=only_zero)
    g1 = -1 / (1 + math.exp(1.0))
    g2 = -1 / (1 + math.exp(0.5))  # the gradient is negative: uphill is to the left, by the radius
    assert network.w.item() == pytest.approx(1.0 - 0.1 * (0.3 * g1 + 0.7 * g2), abs=1e-6)


class Exact(nn.Module):
    """A network in double precision: which order a machine sums in cannot open a rectifier near zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


@pytest.mark.parametrize("norm", ["global", "per_tensor"])
def test_one_step_equals_the_formula_on_a_network(network: nn.Module, defender_view: DefenderView, norm: str) -> None:
    images, labels = defender_view.numerics.images(defender_view.train.images), defender_view.train.labels

    def gradient(at: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(at(images), labels), list(at.parameters())))

    base, tuned = Exact(network).train(), Exact(network)
    g1 = gradient(base)
    whole = torch.cat([part.flatten() for part in g1]).norm()
    moved = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), g1, strict=True):
            parameter += 0.05 * part / (whole if norm == "global" else part.norm())
    g2 = gradient(moved)
    stage(norm=norm).run(tuned, defender_view)
    start = dict(base.named_parameters())
    for (name, after), one, two in zip(tuned.named_parameters(), g1, g2, strict=True):
        assert torch.allclose(after, start[name] - 0.1 * (0.3 * one + 0.7 * two), rtol=0, atol=1e-10)


def test_running_statistics_follow_the_first_pass_only(network: nn.Module, defender_view: DefenderView) -> None:
    twin = copy.deepcopy(network).train()
    with torch.no_grad():
        twin(defender_view.train.images.float() / 255)
    stage().run(network, defender_view)
    expected = dict(twin.named_buffers())
    for name, buffer in network.named_buffers():
        assert torch.allclose(buffer.float(), expected[name].float(), atol=1e-5), name
    assert not network.training


def test_alpha_zero_is_plain_fine_tuning_to_the_bit(network: nn.Module, defender_view: DefenderView) -> None:
    twin = copy.deepcopy(network)
    stage(alpha=0.0, batch_size=16).run(network, defender_view)
    Finetune(epochs=1, batch_size=16, optimizer=partial(torch.optim.SGD, lr=0.1)).run(twin, defender_view)
    for one, two in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"alpha": 1.5}, {"norm": "layer"}])
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        stage(**options)
