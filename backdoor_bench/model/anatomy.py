"""The questions that methods ask a network, answered in one place for any module.

Order means the order in which modules are registered, which for every network here is the order of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from backdoor_bench.errors import IncompatibleError

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Softplus)


def batch_norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Every BatchNorm2d with affine parameters and running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats
    }


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Every Conv2d by name, shortcuts included."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def activations(network: nn.Module) -> dict[str, nn.Module]:
    """Every rectifier-like activation module by name; gates of squeeze-and-excitation (sigmoids) are not among them."""
    return {name: module for name, module in network.named_modules() if isinstance(module, ACTIVATIONS)}


def head(network: nn.Module) -> tuple[str, nn.Linear]:
    """The first Linear behind the last convolution: where the convolutional features end."""
    name, found = None, None
    for candidate, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            name, found = None, None
        elif isinstance(module, nn.Linear) and found is None:
            name, found = candidate, module
    if name is None or found is None:
        raise IncompatibleError(f"{type(network).__name__} has no Linear layer behind its last convolution")
    return name, found


def capture(network: nn.Module, module: nn.Module, images: Tensor, where: str = "input") -> Tensor:
    """What ``module`` got (``where="input"``) or gave (``"output"``) during ``network(images)``."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0] if where == "input" else output)

    handle = module.register_forward_hook(hook)
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1]


def conv_bn_pairs(network: nn.Module) -> dict[str, str]:
    """``{bn name: conv name}`` for every BatchNorm2d whose input is a convolution's output, from the traced graph."""
    graph = trace(network)
    modules = dict(network.named_modules())
    pairs = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            source = node.args[0]
            called = isinstance(source, fx.Node) and source.op == "call_module"
            if called and isinstance(modules[str(source.target)], nn.Conv2d):
                pairs[str(node.target)] = str(source.target)
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
            f"{type(network).__name__} cannot be traced by torch.fx, so its layer order is unknown ({error})"
        ) from error


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500) -> Tensor:
    """``function`` over the rows of ``images``, concatenated."""
    return torch.cat([function(part) for part in images.split(batch_size)])


def _has_head(network: nn.Module) -> bool:
    try:
        head(network)
    except IncompatibleError:
        return False
    return True


PARTS: dict[str, Callable[[nn.Module], bool]] = {
    "BatchNorm2d": lambda network: bool(batch_norms(network)),
    "Conv2d": lambda network: bool(convolutions(network)),
    "activations": lambda network: bool(activations(network)),
    "conv-BatchNorm2d pairs": lambda network: bool(conv_bn_pairs(network)),
    "a Linear head": _has_head,
}
"""What a defense may require of a network, by the name its YAML gives."""
