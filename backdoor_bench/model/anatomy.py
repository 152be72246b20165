"""The questions that methods ask a network, answered in one place for any module.

What a network *has* (its BatchNorms, its convolutions) is listed in the order in which modules are registered. What
comes before or behind what (the head, the last convolution, conv-BatchNorm pairs, activations) is seen in one forward
(:func:`walk`) of a few images: by default two grey ones of 32x32; hand over others where the size matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model.activation_calls import separate, sites
from backdoor_bench.model.walk import Step, Walk, example, title, walk

__all__ = [
    "PARTS", "activations", "batch_norms", "capture", "channel_parameters", "classifier", "conv_bn_pairs",
    "convolutions", "example", "head", "in_batches", "last_convolution", "neurons", "penultimate", "separate", "title",
    "trace", "walk",
]  # fmt: skip


def batch_norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Every BatchNorm2d with affine parameters and running statistics, by name; timm's fused with an activation too.

    Not BatchNorm1d: none of the networks that the methods were published on has one, and theirs are maps' channels.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats
    }


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Every Conv2d by name: shortcuts, depthwise and grouped ones, and those of squeeze-and-excitation included."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def neurons(network: nn.Module, kind: str = "conv", images: Tensor | None = None) -> dict[str, Tensor]:
    """The weights whose first index counts neurons, by parameter name.

    A depthwise or grouped convolution is no exception: its filters are (1 or more, k, k) each. What gives the logits
    is one: its rows are classes.

    Args:
        kind: ``conv``: every Conv2d; ``linear``: every Linear, and the in-projections of attention.
        images: see :func:`walk`.
    """
    found: dict[str, Tensor] = {}
    linear = False
    for name, module in network.named_modules():
        linear |= isinstance(module, nn.Linear)
        if isinstance(module, nn.Conv2d if kind == "conv" else nn.Linear):
            _require_plain(name, module)
            found[f"{name}.weight"] = module.weight  # type: ignore[assignment]
        elif kind == "linear" and isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[f"{name}.in_proj_weight"] = module.in_proj_weight
    if found and (kind == "linear" or not linear):  # where there is a Linear, no convolution gives the logits
        for step in _giving_logits(walk(network, images)):
            found.pop(f"{step.name}.weight", None)
    return found


def _require_plain(name: str, module: nn.Module) -> None:
    """Raise unless the weight is a parameter: what spectral_norm computes anew in each forward cannot be pruned."""
    if "weight" not in module._parameters:
        raise IncompatibleError(
            f"the weight of '{name}' ({type(module).__name__}) is computed anew in each forward (spectral_norm, "
            "weight_norm or the like), so nothing can be pruned in it; make it a parameter, e.g. with "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
        )


def channel_parameters(network: nn.Module, weight: str, followers: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Every parameter whose i-th entry belongs to channel i of a layer, by name.

    Args:
        weight: name of the layer's weight, as :func:`neurons` gives it.
        followers: modules whose affine parameters belong to the same channels: the BatchNorm behind a convolution.
    """
    parameters = dict(network.named_parameters())
    names = [weight, weight.removesuffix("weight") + "bias"]
    names += [f"{module}.{part}" for module in followers for part in ("weight", "bias")]
    return {name: parameters[name] for name in names if name in parameters}


def activations(network: nn.Module, images: Tensor | None = None) -> dict[str, nn.Module]:
    """The modules in which activations of the images are computed, in order, by name.

    Rectifier-like activations, be they modules or functions, and the outputs of attention blocks; not the gates of
    squeeze-and-excitation (sigmoids). The network is left as it is: :func:`separate` gives each a module of its own.
    """
    return {site.module: network.get_submodule(site.module) for site in sites(walk(network, images))}


def last_convolution(network: nn.Module, images: Tensor | None = None) -> tuple[str, nn.Conv2d]:
    """The convolution that gives a feature map last: not a squeeze-and-excitation's, nor one that gives the logits."""
    seen = walk(network, images)
    steps = seen.of(nn.Conv2d)
    apart = {step.name for step in _giving_logits(seen)}
    for before, step in zip([None, *steps], steps, strict=False):
        if step.output is not None and id(step.output[0]) in seen.gates:
            apart.add(step.name)
            narrow = step.source[0].shape[1] if step.source is not None else 0
            if before is not None and before.shape[1:2] == (narrow,) and narrow < step.shape[1]:
                apart.add(before.name)  # the squeeze before the excitation
    found = [step for step in steps if step.name not in apart]
    if not found:
        raise IncompatibleError(f"{title(network)} has no convolution")
    return found[-1].name, found[-1].module  # type: ignore[return-value]


def head(network: nn.Module, images: Tensor | None = None) -> tuple[str, nn.Linear]:
    """Where features end and the classifier head begins: the first Linear that runs behind the last feature map.

    A feature map is anything of more than two dimensions, tokens included: of a ViT the head gets the class token.
    The first of three in VGG, of two in MobileNetV3, the only one elsewhere.
    """
    steps = walk(network, images).steps
    last = max((number for number, step in enumerate(steps) if len(step.shape) > 2), default=-1)
    name, found = _linear(network, steps[last + 1 :], 0, "behind its last feature map")
    _require_plain(name, found)
    return name, found


def classifier(network: nn.Module, images: Tensor | None = None) -> tuple[str, nn.Linear]:
    """The Linear that runs last, and gives the logits; :func:`penultimate` is its input.

    Raises:
        IncompatibleError: there is none, or the logits are made of several (a distilled ViT's, the mean of two).
    """
    seen = walk(network, images)
    several = [step.name for step in _giving_logits(seen)]
    if len(several) > 1:
        raise IncompatibleError(
            f"{title(network)} makes its logits of several Linear layers ({', '.join(several)}), so no one of them is "
            "its classifier"
        )
    return _linear(network, seen.steps, -1, "in its forward")


def _giving_logits(seen: Walk) -> list[Step]:
    """The layers behind which there are only logits: the Linear that runs last, or several whose results are merged; in
    a network without any, a convolution whose maps of one pixel are the logits."""
    linear = seen.of(nn.Linear)
    if linear:
        shape = seen.output.shape if isinstance(seen.output, Tensor) else None
        given = any(step.output is not None and step.output[0] is seen.output for step in linear)
        same = [step for step in linear if step.shape == shape]
        return linear[-1:] if given or len(same) < 2 else same
    last = seen.of(nn.Conv2d)[-1:]
    return last if last and isinstance(seen.output, Tensor) and last[0].shape == (*seen.output.shape, 1, 1) else []


def _linear(network: nn.Module, steps: Sequence[Step], which: int, where: str) -> tuple[str, nn.Linear]:
    found = [(step.name, step.module) for step in steps if isinstance(step.module, nn.Linear)]
    if not found:
        raise IncompatibleError(f"{title(network)} has no Linear layer {where}")
    return found[which]


def penultimate(network: nn.Module, images: Tensor) -> Tensor:
    """The penultimate features of ``images``, (B, F): the input of :func:`classifier`."""
    return capture(network, classifier(network, images[:2])[1], images)


def capture(network: nn.Module, module: nn.Module, images: Tensor, where: str = "input") -> Tensor:
    """What ``module`` got (``where="input"``) or gave (``"output"``) during ``network(images)``.

    A copy, since what runs next may work in place.
    """
    seen: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].clone())

    def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.clone())

    hooks = {"input": module.register_forward_pre_hook, "output": module.register_forward_hook}
    handle = hooks[where](before if where == "input" else after)  # type: ignore[operator]
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1]


def conv_bn_pairs(network: nn.Module, images: Tensor | None = None) -> dict[str, str]:
    """``{bn name: conv name}`` for every BatchNorm2d whose input is the very output of a convolution, in order."""
    given: dict[int, tuple[Step, int]] = {}
    pairs = {}
    for step in walk(network, images).steps:
        if isinstance(step.module, nn.BatchNorm2d) and step.source is not None:
            source, version = given.get(id(step.source[0]), (None, 0))
            # Something added in place (a shortcut) is another version of the same tensor.
            if source is not None and version == step.source[1]:
                _require_plain(source.name, source.module)
                pairs[step.name] = source.name
        if isinstance(step.module, nn.Conv2d) and step.output is not None:
            given[id(step.output[0])] = step, step.output[1]
    return pairs


def trace(network: nn.Module) -> fx.Graph:
    """The graph of the forward pass.

    Raises:
        IncompatibleError: torch.fx cannot follow it.
    """
    try:
        return fx.Tracer().trace(network)
    except Exception as error:  # fx raises many kinds; each means the same thing here
        raise IncompatibleError(
            f"{title(network)} cannot be traced by torch.fx, so what comes behind its head is unknown ({error})"
        ) from error


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500) -> Tensor:
    """``function`` over the rows of ``images``, concatenated."""
    return torch.cat([function(part) for part in images.split(batch_size)])


def _has_head(network: nn.Module, images: Tensor | None) -> bool:
    try:
        head(network, images)
    except IncompatibleError:
        return False
    return True


PARTS: dict[str, Callable[[nn.Module, Tensor | None], bool]] = {
    "BatchNorm2d": lambda network, _: bool(batch_norms(network)),
    "Conv2d": lambda network, _: bool(convolutions(network)),
    "activations": lambda network, images: bool(activations(network, images)),
    "conv-BatchNorm2d pairs": lambda network, images: bool(conv_bn_pairs(network, images)),
    "a Linear head": _has_head,
}
"""What a defense may require of a network, by the name its YAML gives."""
