"""One dry forward, watched: which modules ran in which order on which tensors, and where activations were computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from backdoor_bench.errors import BenchError, IncompatibleError

IMAGE_SIZE = (32, 32)


def _functions(*names: str) -> frozenset[Any]:
    """The functions of these names and their in-place twins, in torch.nn.functional, torch and Tensor."""
    places = (F, torch, Tensor)
    found = (getattr(place, spelt, None) for place in places for name in names for spelt in (name, f"{name}_"))
    return frozenset(function for function in found if function is not None)


ACTIVATIONS = _functions(
    "relu", "relu6", "hardtanh", "threshold", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu",
    "hardswish", "softplus", "mish",
)  # fmt: skip
"""Rectifier-like functions, functional spelling (hardtanh: what nn.ReLU6 calls). Gates are not among them."""

GATES = _functions("sigmoid", "hardsigmoid", "softmax")
"""What turns numbers into shares: of a squeeze-and-excitation, of branches to choose from."""

ATTENTION = _functions("scaled_dot_product_attention", "multi_head_attention_forward")


@dataclass(frozen=True)
class Step:
    """One call of a module that has returned. ``source`` and ``output``: its first tensor in and out, if any, with
    the version that each had (an in-place operation raises it)."""

    name: str
    module: nn.Module
    source: tuple[Tensor, int] | None
    output: tuple[Tensor, int] | None

    @property
    def shape(self) -> torch.Size:
        """Of the output; empty if there is none."""
        return self.output[0].shape if self.output is not None else torch.Size()


@dataclass(frozen=True)
class Place:
    """A module in whose forward an activation is computed, and where: ``position`` counts the activations computed
    since its start, inside its children too."""

    module: str
    position: int


@dataclass(frozen=True)
class Activation:
    """One call of an activation function; or, ``at_output``, what an attention block returned.

    ``inner`` is the innermost module that was running; ``outer`` the one around it. ``alone``: the inner one computes
    this activation only, and has no children and no tensors of its own, like nn.ReLU.
    """

    inner: Place
    outer: Place | None
    alone: bool
    shape: torch.Size
    at_output: bool = False


@dataclass
class _Frame:
    """A module that is running; ``computed``: for each of its own activations the index in the list of all, its
    position, where in the caller it is, and its shape."""

    name: str
    source: tuple[Tensor, int] | None
    count: int = 0
    attends: bool = False
    computed: list[tuple[int, int, Place | None, torch.Size]] = field(default_factory=list)


@dataclass(frozen=True)
class Walk:
    """What a forward did, in order.

    Attributes:
        batch: images that were in it.
        steps: calls of modules, in the order in which they returned; a container comes behind its children.
        activations: in the order in which they were computed.
        calls: how often each module was called.
        totals: activations computed between a module's start and end, in its last call.
        gates: ids of the tensors that became gates.
        output: what the network returned.
    """

    batch: int
    steps: list[Step]
    activations: list[Activation]
    calls: Counter[str]
    totals: dict[str, int]
    gates: frozenset[int]
    output: Any

    def of(self, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Step]:
        """The steps of modules of a kind."""
        return [step for step in self.steps if isinstance(step.module, kind)]


def title(network: nn.Module) -> str:
    """What messages call a network: its class, and in brackets that of its backbone if that says more."""
    backbone = getattr(network, "backbone", None)
    if isinstance(backbone, nn.Sequential) and backbone:
        backbone = backbone[-1]
    inner, outer = type(backbone), type(network).__name__
    return f"{outer} ({inner.__name__})" if backbone is not None and inner.__module__[:6] != "torch." else outer


def example(network: nn.Module, image_size: tuple[int, int] = IMAGE_SIZE) -> Tensor:
    """Two grey images for a network, (2, 3, H, W) in [0, 1], on its device; meta tensors for a network on meta."""
    tensor = next((t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()), torch.empty(0))
    return torch.full((2, 3, *image_size), 0.5, dtype=tensor.dtype, device=tensor.device)


def _resizable(network: nn.Module) -> bool:
    """Whether its configuration has ``resize`` and leaves it open."""
    return getattr(network, "resizable", False) and not isinstance(getattr(network, "backbone", None), nn.Sequential)


@torch.no_grad()
def walk(network: nn.Module, images: Tensor | None = None) -> Walk:
    """Run ``network`` once in eval mode and watch. It is left as it was; weights and pixels do not matter.

    Args:
        images: (B, 3, H, W) in [0, 1]; B of 2 or more tells the batch's dimension from one of size 1. None: see
            :func:`example`.

    Raises:
        IncompatibleError: the forward fails.
    """
    images = example(network) if images is None else images
    watch = _Watch()
    with torch.inference_mode(False), evaluating(network), ExitStack() as hooks:  # inference tensors have no versions
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(watch.enters(name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(watch.leaves).remove)
        try:
            with watch:
                output = network(images)
        except BenchError:
            raise
        except Exception as error:  # whatever a forward may raise, it means the same thing here
            shape = tuple(images.shape)
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            hint = "; if they are too small for it, model.resize=SIDE enlarges them" if _resizable(network) else ""
            raise IncompatibleError(
                f"{title(network)} cannot be run on images of {shape} ({reason}), so the order of its layers is "
                f"unknown{hint}"
            ) from error
    calls = Counter(step.name for step in watch.steps)
    found = [activation for activation in watch.activations if activation is not None]
    gates = frozenset(id(tensor) for tensor in watch.gates)
    return Walk(len(images), watch.steps, found, calls, watch.totals, gates, output)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside the block every module is in eval mode; afterwards each is in the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Watch(TorchFunctionMode):
    """Keeps the stack of running modules, and notes calls of activation functions."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.activations: list[Activation | None] = []
        self.totals: dict[str, int] = {}
        self.gates: list[Tensor] = []  # kept, so that an id stays one tensor's
        self._running: list[_Frame] = []

    def enters(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(_Frame(name, _first((*args, *kwargs.values()))))

        return hook

    def leaves(self, module: nn.Module, _: Any, result: Any) -> None:
        frame, output = self._running.pop(), _first(result)
        self.steps.append(Step(frame.name, module, frame.source, output))
        self.totals[frame.name] = frame.count
        alone = len(frame.computed) == 1 and next(module.children(), None) is None and not module.state_dict()
        for index, position, outer, shape in frame.computed:
            self.activations[index] = Activation(Place(frame.name, position), outer, alone, shape)
        if frame.attends and output is not None:
            self.activations.append(Activation(Place(frame.name, -1), None, False, output[0].shape, at_output=True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ATTENTION:
            self._running[-1].attends = True
        if func in GATES and args and isinstance(args[0], Tensor):
            self.gates.append(args[0])
        if func in ACTIVATIONS:
            frame, *around = self._running[::-1]
            outer = Place(around[0].name, around[0].count) if around else None
            frame.computed.append((len(self.activations), frame.count, outer, result.shape))
            self.activations.append(None)
            for running in self._running:
                running.count += 1
        return result


def _first(values: Any) -> tuple[Tensor, int] | None:
    """The first tensor of what a module takes or returns, with its version."""
    if isinstance(values, Tensor):
        return values, values._version
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, Iterable) and not isinstance(values, str):
        return next((_first(value) for value in values if isinstance(value, Tensor)), None)
    return None
