from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoor_bench.model import anatomy
from backdoor_bench.stage.masked_batch_norm import MaskedBatchNorm2d, bake, masked_copy


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


@pytest.mark.parametrize("momentum", [0.1, None])
def test_tracked_running_statistics_move_as_without_a_mask(momentum: float | None) -> None:
    masked, plain = MaskedBatchNorm2d(layer().inner, track=True).train(), layer().inner.train()
    masked.inner.momentum = plain.momentum = momentum
    masked.mask.data.copy_(torch.tensor([0.5, 0.25]))
    plain.weight.data.mul_(masked.mask.data)
    for seed in (0, 1):
        x = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(masked(x), plain(x))
    assert masked.inner.running_mean.tolist() != [0, 1]
    for name, moved in plain.named_buffers():
        assert torch.equal(masked.inner.get_buffer(name), moved), name
    before = masked.inner.running_var.clone()
    assert torch.allclose(masked.eval()(x), plain.eval()(x))
    assert torch.equal(masked.inner.running_var, before)


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


def test_masks_are_baked_with_the_statistics_that_moved(network: nn.Module) -> None:
    twin, layers = masked_copy(network, track=True)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twin.train()(images)
    for number, masked in enumerate(layers.values()):
        masked.mask.data.fill_(1 / (number + 2))
    expected = twin.eval()(images)
    gammas = {name: norm.weight.clone() for name, norm in anatomy.batch_norms(network).items()}
    baked = bake(twin, layers)
    assert not any(isinstance(module, MaskedBatchNorm2d) for module in baked.modules())
    network.load_state_dict(baked.state_dict())
    assert torch.allclose(network.eval()(images), expected, atol=1e-6)
    for number, (name, norm) in enumerate(anatomy.batch_norms(network).items()):
        assert torch.allclose(norm.weight, gammas[name] / (number + 2))
        assert int(norm.num_batches_tracked) == 1
