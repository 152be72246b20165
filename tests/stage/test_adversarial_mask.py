from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Draws
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView
from backdoor_bench.stage.adversarial_mask import AdversarialMask
from backdoor_bench.stage.masked_batch_norm import masked_copy


def stage(kind: type[AdversarialMask] = AdversarialMask, **options: Any) -> AdversarialMask:
    optimizer = partial(torch.optim.SGD, lr=options.pop("lr", 0.2), momentum=0.9)
    return kind(**{"iterations": 2, "batch_size": 16, "optimizer": optimizer, **options})


class Watched(AdversarialMask):
    """Keeps every noise that was handed to the layers, None for none."""

    seen: list[Tensor | None]

    def _disturb(self, noise: Tensor | None, sizes: list[int]) -> None:
        self.seen.append(None if noise is None else noise.detach().clone())
        super()._disturb(noise, sizes)


def test_without_noise_one_iteration_is_one_gradient_step(network: nn.Module, defender_view: DefenderView) -> None:
    scores = stage(iterations=1, steps=0, eps=0.0, lr=0.05).run(network, defender_view)
    twin, layers = masked_copy(network)
    stored, labels = next(iter(Draws(defender_view.train, 16, 1, defender_view.generator("order"))))
    F.cross_entropy(twin.train()(defender_view.numerics.images(stored)), labels).backward()
    for name, layer in layers.items():
        assert torch.allclose(scores.values[name], (1 - 0.05 * layer.mask.grad).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(("project", "reach"), [(False, 0.8), (True, 0.4)])
def test_noise_climbs_from_a_draw_and_is_held_where_asked(
    project: bool, reach: float, network: nn.Module, defender_view: DefenderView
) -> None:
    watched = stage(Watched, iterations=1, project_noise=project)
    watched.seen = []
    watched.run(network, defender_view)
    drawn, climbed, none = watched.seen
    assert none is None
    assert drawn.shape == climbed.shape == (2, sum(norm.num_features for norm in anatomy.batch_norms(network).values()))
    assert 0.3 < drawn.abs().max() <= 0.4
    assert reach - 0.15 < climbed.abs().max() <= reach + 1e-6
    if not project:
        assert torch.allclose((climbed - drawn).abs()[climbed != drawn], torch.tensor(0.4))


@pytest.mark.parametrize(("iterations", "epochs"), [(0, 0), (7, 7), (150, 3), (2000, 20)])
def test_exactly_so_many_iterations(iterations: int, epochs: int) -> None:
    made = stage(iterations=iterations)
    assert made.epochs == epochs
    assert made.epochs * made.steps_per_epoch == iterations or not iterations


def test_each_iteration_climbs_and_masks_stay_in_range(network: nn.Module, defender_view: DefenderView) -> None:
    watched = stage(Watched, iterations=3, steps=2, lr=50.0)
    watched.seen = []
    scores = watched.run(network, defender_view)
    assert len(watched.seen) == 3 * (2 + 1 + 1)
    masks = torch.cat(list(scores.values.values()))
    assert masks.min() == 0
    assert masks.max() == 1
    assert scores.report["channels"] == len(masks)
    assert scores.report["share_at_0"] == pytest.approx((masks == 0).double().mean().item())


def test_the_network_is_untouched_and_the_same_repetition_gives_the_same(
    network: nn.Module, defender_view: DefenderView
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first, second = (stage().run(network, defender_view) for _ in range(2))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert list(first.values) == list(anatomy.batch_norms(network))
    assert all(torch.equal(first.values[name], second.values[name]) for name in first.values)
    assert any((values < 1).any() for values in first.values.values())


def test_no_iterations_mask_nothing(network: nn.Module, defender_view: DefenderView) -> None:
    scores = stage(iterations=0).run(network, defender_view)
    assert all((values == 1).all() for values in scores.values.values())


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"eps": -0.1}, {"iterations": -1}])
def test_impossible_options(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        stage(**options)
