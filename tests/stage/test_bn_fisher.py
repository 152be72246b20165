from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoor_bench.dataset import Batches
from backdoor_bench.errors import ConfigError
from backdoor_bench.model import anatomy
from backdoor_bench.stage import DefenderView, Reference, affine_budget
from backdoor_bench.stage.bn_fisher import BNFisher, bn_distance, budget, input_statistics, rectify_loss, top_k


def stage(kind: type[BNFisher] = BNFisher, **options: Any) -> BNFisher:
    settings = {"epochs": 1, "batch_size": 20, "optimizer": partial(torch.optim.SGD, lr=1e-3, momentum=0.9)}
    return kind(**{**settings, **options})


def pairs(**scores: tuple[list[float], list[float]]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (torch.tensor(gamma), torch.tensor(beta)) for name, (gamma, beta) in scores.items()}


def chosen(**options: Any) -> dict[str, tuple[list[bool], list[bool]]]:
    scores = pairs(a=([9.0, 1.0], [2.0, 8.0]), b=([7.0, 3.0], [0.0, 4.0]))
    return {name: (gamma.tolist(), beta.tolist()) for name, (gamma, beta) in top_k(scores, **options).items()}


def test_distance_by_hand() -> None:
    batch = (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 9.0]))
    reference = (torch.tensor([0.0, 0.0]), torch.tensor([1.0, 4.0]))
    assert bn_distance(batch, reference, lam=0.1).item() == pytest.approx(5 + 0.1 * 5)
    assert bn_distance(batch, reference, lam=0.1, second_moment="std", eps=0.0).item() == pytest.approx(5 + 0.1 * 1)


def test_the_gradient_flows_through_mean_and_variance_and_is_finite_where_they_agree() -> None:
    mean, variance = torch.tensor([2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    bn_distance((mean, variance), (torch.tensor([0.0]), torch.tensor([1.0])), lam=0.05).backward()
    assert (mean.grad.item(), variance.grad.item()) == pytest.approx((1.0, 0.05))
    mean.grad = None
    bn_distance((mean, variance), (mean.detach(), variance.detach()), lam=0.05).backward()
    assert mean.grad.item() == 0


def test_rectify_loss_by_hand() -> None:
    ce, distances = torch.tensor(2.0), [torch.tensor(1.0), torch.tensor(3.0)]
    assert rectify_loss(ce, distances, "log").item() == pytest.approx(2 + math.log(2 + 1e-6))
    assert rectify_loss(ce, distances, "linear", weight=0.5).item() == pytest.approx(2 + 0.5 * 4)
    assert rectify_loss(ce, distances, "none") is ce


def test_the_batch_statistics_are_those_of_the_inputs_by_another_way() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    images = torch.rand(5, 3, 6, 6)
    with input_statistics({"1": network[1], "3": network[3]}) as seen:
        network(images)
    assert not network[1]._forward_pre_hooks
    # BatchNorm itself is the independent reference: with momentum 1 its running statistics are the batch's.
    for name in ("1", "3"):
        fresh = nn.BatchNorm2d(4, momentum=1.0)
        copied = copy.deepcopy(network).train()
        copied[int(name)] = fresh
        copied(images)
        assert torch.allclose(seen[name][0], fresh.running_mean, atol=1e-6)
        assert torch.allclose(seen[name][1], fresh.running_var, atol=1e-6)


def test_the_budget_of_the_published_network() -> None:
    assert budget("ratio_bn", 0.05, 6784, 11_171_146) == 339
    assert budget("ratio_all", 1e-5, 6784, 11_171_146) == 111
    assert budget("ratio_all", 7e-5, 6784, 11_171_146) == 781
    assert budget("count", 12, 6784, 11_171_146) == 12


def test_an_impossible_budget_is_refused_before_any_work(network: nn.Module, defender_view: DefenderView) -> None:
    with pytest.raises(ConfigError, match=r"k=0\.05 with k_mode=ratio_all asks for \d+ of 212 "):
        stage(k_mode="ratio_all").check(network, defender_view)
    with pytest.raises(ConfigError, match="asks for 0 of"):
        stage(k=1e-6).check(network, defender_view)
    with pytest.raises(ConfigError, match=r"asks for 1 of 212 .* expected at least 2, as k=0\.01 with k_mode=ratio_bn"):
        stage(k_mode="count", k=1, unit="channel").check(network, defender_view)


@pytest.mark.parametrize(("entries", "least", "share"), [(16, 1, "0.063"), (16, 2, "0.125"), (6784, 1, "0.001")])
def test_what_a_refused_budget_advises_is_one_that_is_taken(entries: int, least: int, share: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected at least {least}, as k={share} with k_mode=ratio_bn asks for"):
        budget("ratio_bn", 1e-6, entries, 10_000, least)
    assert budget("ratio_bn", float(share), entries, 10_000, least) >= least


def test_top_k_by_hand() -> None:
    assert chosen(count=3) == {"a": ([True, False], [False, True]), "b": ([True, False], [False, False])}
    assert chosen(count=2, order="bottom") == {
        "a": ([False, True], [False, False]),
        "b": ([False, False], [True, False]),
    }
    # channel sums: a 11, 9; b 7, 7
    assert chosen(count=4, unit="channel") == {"a": ([True, True], [True, True]), "b": ([False, False], [False, False])}
    assert chosen(count=6, unit="channel")["b"] == ([True, False], [True, False])


def test_the_layer_cap_hands_over_to_the_next_best_elsewhere() -> None:
    assert chosen(count=3, max_frac_per_layer=0.25) == {
        "a": ([True, False], [False, False]),
        "b": ([True, False], [False, False]),
    }
    assert chosen(count=3, max_frac_per_layer=0.5) == {
        "a": ([True, False], [False, True]),
        "b": ([True, False], [False, False]),
    }
    assert chosen(count=4, max_frac_per_layer=0.5) == {
        "a": ([True, False], [False, True]),
        "b": ([True, False], [False, True]),
    }


def test_ties_never_prune_more_than_asked() -> None:
    pruned = top_k(pairs(a=([1.0] * 3, [1.0] * 3), b=([1.0] * 3, [1.0] * 3)), 5)
    assert sum(int(entries.sum()) for pair in pruned.values() for entries in pair) == 5
    assert pruned["a"][0].all()


def test_fisher_is_the_mean_squared_batch_gradient(network: nn.Module, defender_view: DefenderView) -> None:
    # An independent computation: the moments written out, layer by layer.
    fisher = stage(epochs=0, bn_loss="linear", bn_weight=0.01)
    twin = copy.deepcopy(network)
    fisher.layers = anatomy.batch_norms(twin)
    fisher.reference = {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in anatomy.batch_norms(network).items()
    }
    scores = fisher.fisher(twin, defender_view)

    other = copy.deepcopy(network).train()
    layers = list(anatomy.batch_norms(other).values())
    affine = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    inputs: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, out: inputs.append(args[0]))
    squares: list[list[Tensor]] = []
    for stored, labels in Batches(defender_view.train, 20, defender_view.generator("fisher")):
        inputs.clear()
        loss = F.cross_entropy(other(stored.float() / 255), labels)
        for layer_input in inputs:
            rows = layer_input.transpose(0, 1).flatten(1)
            mean = rows.mean(1)
            variance = ((rows - mean[:, None]) ** 2).sum(1) / (rows.shape[1] - 1)
            # The copy starts with the reference's statistics: mean 0, variance 1.
            loss = loss + 0.01 * (mean.square().sum().sqrt() + 0.05 * (variance - 1).square().sum().sqrt())
        squares.append([gradient.square() for gradient in torch.autograd.grad(loss, affine)])
    assert len(squares) == 2
    expected = [torch.stack(each).mean(0) for each in zip(*squares, strict=True)]
    found = [part for pair in scores.values() for part in pair]
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-9)
    assert not twin.training


@pytest.mark.parametrize(
    "options",
    [{}, {"bn_loss": "linear"}, {"bn_loss": "none"}, {"bn_second_moment": "std"}, {"rectify_params": "bn_only"}],
)
def test_leaves_network_and_reference_alone_and_masks_exactly_k(
    network: nn.Module, defender_view: DefenderView, options: dict[str, Any]
) -> None:
    reference = Reference(copy.deepcopy(network))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    masking = stage(**options)
    mask = masking.run(network, defender_view, reference)
    for untouched in (network, reference.network):
        assert all(torch.equal(before[key], value) for key, value in untouched.state_dict().items())
    assert mask.count == mask.report["pruned"] == int(0.05 * 212)
    assert mask.report["entries"] == 212
    assert sum(count for name, count in mask.report.items() if name.startswith("pruned.")) == mask.count
    shapes = dict(network.named_parameters())
    assert all(entries.shape == shapes[name].shape for name, entries in mask.pruned.items())


def test_scores_during_the_rectifying_steps_are_their_mean(network: nn.Module, defender_view: DefenderView) -> None:
    """A rate of 0 leaves the copy where it was, so that each of two epochs gives the same gradients."""
    seen: list[dict[str, Any]] = []

    class Look(BNFisher):
        def _by_layer(self) -> dict[str, Any]:
            seen.append(super()._by_layer())
            return seen[-1]

    still = {"optimizer": partial(torch.optim.SGD, lr=0.0), "batch_size": 40}
    for when, epochs in (("after", 1), ("during", 2)):
        mask = stage(Look, when=when, epochs=epochs, **still).run(network, defender_view)
        assert mask.report["cross_entropy"] > 0
        assert mask.report["bn_distance"] > 0
    after, during = ([part for pair in scores.values() for part in pair] for scores in seen)
    assert all(torch.allclose(one, two, rtol=1e-3, atol=1e-9) for one, two in zip(after, during, strict=True))
    with pytest.raises(ConfigError, match="when=during needs rectifying epochs"):
        stage(when="during", epochs=0)


def test_the_copy_in_the_networks_place(network: nn.Module, defender_view: DefenderView) -> None:
    reference = Reference(copy.deepcopy(network))
    with torch.no_grad():
        for layer in anatomy.batch_norms(reference.network).values():
            layer.weight.fill_(0.5)
    came = {name: value.clone() for name, value in reference.network.state_dict().items()}
    reset, rectified = copy.deepcopy(network), copy.deepcopy(network)
    stage(apply_to="reset").run(reset, defender_view, reference)
    assert all(torch.equal(came[name], value) for name, value in reset.state_dict().items())
    stage(apply_to="rectified", optimizer=partial(torch.optim.SGD, lr=0.1)).run(rectified, defender_view, reference)
    weights = dict(rectified.named_parameters())
    assert not any(torch.equal(came[name], weight) for name, weight in weights.items() if name.endswith("bn1.weight"))
    assert not torch.equal(came["backbone.conv1.weight"], weights["backbone.conv1.weight"])


def test_without_a_reference_the_copy_is_the_networks_own(network: nn.Module, defender_view: DefenderView) -> None:
    alone = stage().run(network, defender_view)
    given = stage().run(network, defender_view, Reference(copy.deepcopy(network)))
    assert alone.pruned.keys() == given.pruned.keys()
    assert all(torch.equal(alone.pruned[name], given.pruned[name]) for name in alone.pruned)


def test_bn_only_rectifies_nothing_but_affine_parameters(network: nn.Module, defender_view: DefenderView) -> None:
    masking = stage(rectify_params="bn_only")
    masking.layers = anatomy.batch_norms(network)
    assert sum(parameter.numel() for parameter in masking.trained_parameters()) == 212


@pytest.mark.parametrize("batch_size", [20, 40])
def test_fisher_of_single_images_is_that_of_one_after_the_other(
    batch_size: int, network: nn.Module, defender_view: DefenderView
) -> None:
    scoring = stage(epochs=0, fisher="sample_ce", batch_size=batch_size)
    twin = copy.deepcopy(network)
    scoring.layers = anatomy.batch_norms(twin)
    scores = scoring.fisher(twin, defender_view)
    affine = [parameter for layer in scoring.layers.values() for parameter in (layer.weight, layer.bias)]
    expected = [torch.zeros_like(parameter) for parameter in affine]
    for stored, label in zip(defender_view.train.images, defender_view.train.labels, strict=True):
        loss = F.cross_entropy(twin(stored[None].float() / 255), label[None])
        for total, gradient in zip(expected, torch.autograd.grad(loss, affine), strict=True):
            total += gradient.square() / len(defender_view.train)
    for found, reference in zip([part for pair in scores.values() for part in pair], expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in twin.parameters())
    with pytest.raises(ConfigError, match="use when=after"):
        stage(fisher="sample_ce", when="during")


def test_k_by_validation_is_the_largest_that_keeps_the_accuracy(
    network: nn.Module, defender_view: DefenderView, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in anatomy.batch_norms(network).values():
        nn.init.ones_(layer.bias)  # a fresh network's are 0, as pruned ones are
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruned: list[int] = []

    def measured(trial: nn.Module, *_: Any) -> float:
        """Loses a hundredth for each pruned entry, but for a lucky count of 60."""
        affine = [part for layer in anatomy.batch_norms(trial).values() for part in layer.parameters()]
        pruned.append(sum(int((part == 0).sum()) for part in affine))
        return 0.9 if pruned[-1] == 60 else 0.9 - 0.01 * pruned[-1]

    monkeypatch.setattr(affine_budget, "accuracy", measured)
    options: dict[str, Any] = {"k_mode": "count", "k": 100, "k_select": "val"}
    chosen = stage(**options, max_drop=0.1).run(network, defender_view)
    assert chosen.count == 60
    assert pruned == [0, *range(5, 101, 5)]
    assert chosen.report["validation_accuracy"] == 0.9
    monkeypatch.setattr(affine_budget, "accuracy", lambda trial, *_: 1.0 if not pruned.pop(0) else 0.0)
    assert stage(**options).run(network, defender_view).count == 0
    assert stage(**options).uses_validation
    assert not stage().uses_validation
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="unit=neuron: expected entry or channel"):
        stage(unit="neuron")
