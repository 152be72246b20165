from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage.masked_batch_norm import MaskedBatchNorm2d, masked_copy


def layer() -> MaskedBatchNorm2d:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 4.0]))
        norm.bias.copy_(torch.tensor([1.0, 10.0]))
        norm.running_mean.copy_(torch.tensor([0.0, 1.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0]) - norm.eps)
    return MaskedBatchNorm2d(norm)


def test_scale_and_shift_by_hand() -> None:
    masked = layer().eval()
    x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)  # normalised: 1 and 1
    assert masked(x).flatten().tolist() == pytest.approx([3, 14])
    masked.mask.data.copy_(torch.tensor([0.5, 0.0]))
    assert masked(x).flatten().tolist() == pytest.approx([2, 10])
    masked.noise = torch.tensor([0.25, 0.5]), torch.tensor([1.0, -0.5])
    assert masked(x).flatten().tolist() == pytest.approx([2 * 0.75 + 2, 4 * 0.5 + 5])


def test_train_mode_uses_batch_statistics_and_leaves_the_running_ones() -> None:
    masked, plain = layer().train(), layer().inner.train()
    x = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(masked(x), plain(x))
    assert masked.inner.running_mean.tolist() == [0, 1]


class WithActivation(nn.BatchNorm2d):
    """As timm has it: normalise, then rectify."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("training", [False, True])
def test_what_a_subclass_does_besides_stays(training: bool) -> None:
    plain, norm = layer(), WithActivation(2)
    norm.load_state_dict(plain.inner.state_dict())
    masked = MaskedBatchNorm2d(norm)
    x = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for one in (masked, plain):
        one.train(training).mask.data.copy_(torch.tensor([0.5, 0.0]))
        one.noise = torch.tensor([0.25, 0.5]), torch.tensor([1.0, -0.5])
    assert torch.allclose(masked(x), plain(x).relu(), atol=1e-6)
    assert (plain(x) < 0).any()
    (gradient,) = torch.autograd.grad(masked(x).sum(), masked.mask)
    assert gradient.all()


@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_copy_computes_the_same_and_only_masks_learn(training: bool, network: nn.Module) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    twin, layers = masked_copy(network)
    assert list(layers) == list(anatomy.batch_norms(network))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = twin.train(training)(images)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.allclose(outputs, network.train(training)(images), atol=1e-6)
    assert [name for name, parameter in twin.named_parameters() if parameter.requires_grad] == [
        f"{name}.mask" for name in layers
    ]
    assert all(parameter.requires_grad for parameter in network.parameters())
