"""Fine-Pruning, step 1: prune the features of the head that clean images activate least, until accuracy drops (Liu,
Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018,
arXiv:1805.12185)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError, IncompatibleError
from backdoor_bench.model import anatomy
from backdoor_bench.numerics import Numerics
from backdoor_bench.stage.base import Stage
from backdoor_bench.stage.output import Mask
from backdoor_bench.stage.prune import write
from backdoor_bench.stage.validation import SLACK
from backdoor_bench.stage.view import DefenderView

BATCH_SIZE = 500


def correct_after_pruning(
    features: Tensor,
    labels: Tensor,
    head: nn.Linear,
    groups: Sequence[Tensor],
    behind: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """How many samples are right when the head's columns are pruned group by group, the last group always kept.

    Exact, with one pass over the head's columns for the whole sweep: its output is a sum over columns, added up from
    the last group to the first (in float64; from the first to the last, rounding would outlive what was pruned).

    Args:
        features: ``(N, F)``, inputs of the head.
        labels: ``(N,)``.
        groups: column indices, in the order of pruning; together all F.
        behind: what the network does with the head's output; None: nothing.

    Returns:
        ``(len(groups),)`` int64: with nothing pruned, with the first group pruned, with the first two pruned, ...
    """
    weight, bias = head.weight.detach(), head.bias
    outputs = torch.zeros(len(features), len(weight), dtype=torch.float64, device=weight.device)
    if bias is not None:
        outputs += bias.detach()
    correct = []
    for columns in reversed(groups):
        outputs += features[:, columns].double() @ weight[:, columns].double().mT
        logits = outputs if behind is None else behind(outputs.to(weight.dtype))
        correct.append((logits.argmax(1) == labels).sum())
    return torch.stack(correct[::-1])


def last_within(correct: Sequence[int], max_drop: float) -> int:
    """The last position before the first at which ``(c_0 - c_k) / c_0 >= max_drop``; 0 if that is the first of all.

    A rise never stops: the authors' absolute value in the criterion is not followed.
    """
    for position, count in enumerate(correct):
        if correct[0] - count >= max_drop * correct[0] - SLACK:
            return max(position - 1, 0)
    return len(correct) - 1


def positions_per_channel(network: nn.Module, head: nn.Module, images: Tensor) -> int:
    """How many neighbouring columns of the head belong to one channel: 49 behind a flattened 7x7 map, 1 if pooled."""
    maps: list[torch.Size] = []
    at_head: list[tuple[torch.Size, int]] = []

    def note(_: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps.append(output.shape)

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Without a map there is one feature per column.
        at_head.append((maps[-1] if maps else torch.Size((1, 0, 1, 1)), inputs[0].shape[-1]))

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.callback(module.register_forward_hook(note).remove)
        hooks.callback(head.register_forward_pre_hook(stop).remove)
        network(images)
    (_, channels, height, width), columns = at_head[-1]
    return height * width if channels * height * width == columns else 1


def module_behind(network: nn.Module, head: str) -> nn.Module:
    """What the network does with the output of its module ``head``, as a module of its own that shares the weights."""
    graph, copy, known = anatomy.trace(network), fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op == "call_module" and node.target == head:
            known = {node: copy.placeholder("outputs")}
        elif known:
            try:
                known[node] = copy.node_copy(node, known.__getitem__)
            except KeyError as error:
                raise IncompatibleError(
                    f"in {anatomy.title(network)} something reaches '{node.name}' around the head '{head}' "
                    f"({error}); its columns cannot be pruned alone"
                ) from None
    return fx.GraphModule(network, copy).eval()


@torch.no_grad()
def head_inputs(network: nn.Module, head: nn.Linear, data: ImageSet, numerics: Numerics) -> Iterator[Tensor]:
    """``(B, F)`` float inputs of the head, batch by batch, of images as they are."""
    for stored in data.images.split(BATCH_SIZE):
        with torch.no_grad(), numerics.autocast():
            features = anatomy.capture(network, head, numerics.images(stored))
        if features.ndim != 2:
            raise IncompatibleError(
                f"the head of {anatomy.title(network)} gets {tuple(features.shape)}; expected (images, features)"
            )
        yield features.float()


class ActivationPrune(Stage):
    """Zeroes the columns of the head (see :func:`anatomy.head`) for the most dormant features.

    Ranked by their mean over the clean training images without augmentation; pruned step by step while the accuracy on
    the validation images is less than ``max_drop`` below that of the whole network, relatively. The last step that
    was is kept (BackdoorBench returns the one after it), and decided on validation images (there: test images), however
    few: of ten, the first that is lost is a tenth and ends it. For the head a zeroed column and a removed channel are
    the same. At least one step's features stay.

    Args:
        max_drop: relative drop of validation accuracy that stops, a fraction.
        step: features pruned at a time: a share of them below 1 (rounded up), else a count.
        rank_by: ``mean``: where features are not rectified, the lowest are the most negative; ``abs``: the mean of
            their absolute values.
        unit: ``channel``: all positions of a flattened map together; ``position``: each alone (BackdoorBench on VGG).
    """

    version = 2
    uses_validation = True

    def __init__(
        self,
        max_drop: float = 0.1,
        step: float = 0.01,
        rank_by: Literal["mean", "abs"] = "mean",
        unit: Literal["channel", "position"] = "channel",
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(inputs)
        if not 0 < max_drop <= 1:
            raise ConfigError(f"max_drop={max_drop}: expected a fraction in (0, 1], e.g. 0.1 for a tenth")
        if step <= 0 or (step >= 1 and step != int(step)):
            raise ConfigError(f"step={step}: expected a share of the features below 1, or a count of them")
        if rank_by not in ("mean", "abs"):
            raise ConfigError(f"rank_by={rank_by}: expected mean or abs")
        if unit not in ("channel", "position"):
            raise ConfigError(f"unit={unit}: expected channel or position")
        self.max_drop, self.step, self.rank_by, self.unit = max_drop, step, rank_by, unit

    def check_network(self, network: nn.Module, images: Tensor) -> None:
        name, head = anatomy.head(network, images)
        if anatomy.classifier(network, images)[1] is not head:
            module_behind(network, name)

    @torch.no_grad()
    def run(self, network: nn.Module, view: DefenderView) -> Mask:
        name, head = anatomy.head(network, view.example)
        first = view.numerics.images(view.train.images[:1])
        with view.numerics.autocast():
            width = positions_per_channel(network, head, first)
        width = width if self.unit == "channel" else 1
        groups = self.groups(network, head, view, width)
        features = torch.cat(list(head_inputs(network, head, view.validation, view.numerics)))
        with view.numerics.autocast():
            last = anatomy.capture(network, head, first, "output").equal(network(first))
        behind = None if last else module_behind(network, name)
        with view.numerics.autocast():
            correct = correct_after_pruning(features, view.validation.labels, head, groups, behind).tolist()
        chosen = last_within(correct, self.max_drop)
        columns = torch.zeros(head.in_features, dtype=torch.bool, device=head.weight.device)
        for group in groups[:chosen]:
            columns[group] = True
        mask = {f"{name}.weight": columns.expand_as(head.weight).clone()}
        write(network, mask)
        count = len(view.validation)
        report = {
            "features": head.in_features // width,
            "pruned": sum(len(group) for group in groups[:chosen]) // width,
            "validation_accuracy_before": correct[0] / count,
            "validation_accuracy": correct[chosen] / count,
            "validation_images": count,
        }
        return Mask(mask, report=report)

    def groups(self, network: nn.Module, head: nn.Linear, view: DefenderView, width: int) -> list[Tensor]:
        """The head's columns in the order of pruning, a step's together; a feature has ``width`` of them."""
        total = torch.zeros(head.in_features, dtype=torch.float64, device=view.device)
        for features in head_inputs(network, head, view.train, view.numerics):
            total += (features.abs() if self.rank_by == "abs" else features).double().sum(0)
        order = total.view(-1, width).sum(1).argsort(stable=True)
        columns = order[:, None] * width + torch.arange(width, device=order.device)
        step = int(self.step) if self.step >= 1 else math.ceil(self.step * len(order) - 1e-9)
        return list(columns.flatten().split(step * width))
