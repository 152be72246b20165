"""A module of its own for every activation that a network computes, whoever computes it.

An activation may be a module that runs once per forward (PreActResNet18), one module that a block calls two or three
times (torchvision's ResNets), a function (``F.relu(features)`` in DenseNet), or in place. A stage that puts something
behind each of them needs one name per call. :func:`separate` gives each a module: those that have one keep it; the
others become children of the module in whose forward they are computed, ``layer1.0.activation_calls.0``, ``.1``, ...

Why calls are counted under a ``TorchFunctionMode`` and the code is not rewritten with torch.fx:

* It needs no trace, so control flow, asserts and non-tensor arguments (ViT, timm) do not matter.
* torch.fx would freeze ``self.training`` where a function takes it (dropout, stochastic depth), and turn the network
  into a generated class; here modules, names, ``state_dict``, hooks, ``train()`` and ``eval()`` stay what they were.
* The owner's class is replaced by a subclass of it, as in ``torch.nn.utils.parametrize``, so it also works where the
  owner is used apart from the network, and nothing else in it changes its name.

The price: a microsecond or two per torch function inside an owner's forward; a forward that computes another number of
activations than it did when the calls were counted is refused; an activation spelt out in other functions
(``x * torch.sigmoid(x)``) is not seen; ``torch.jit.script`` cannot compile an owner (``torch.jit.trace`` and
``torch.export`` follow it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model.addition import Added
from backdoor_bench.model.walk import ACTIVATIONS, Walk, title, walk

CHILD = "activation_calls"
OUTPUT = "output"


class ActivationCalls(Added, nn.ModuleDict):
    """The modules behind the activations that an owner's forward computes, in order: ``0``, ``1``, ...; ``output``
    behind what it returns. Identities, until a stage puts something in their place.

    Args:
        positions: which activations, counted from the start of the owner's forward, inside its children too.
        total: how many there are in all.
        at_output: whether there is one behind the owner's output (an attention block's).
    """

    def __init__(self, positions: Sequence[int], total: int, at_output: bool = False) -> None:
        super().__init__()
        positions = [int(position) for position in positions]
        if sorted({*positions}) != positions or not all(0 <= position < total for position in positions):
            raise ValueError(f"positions={positions}: expected rising numbers from 0 to below total={total}")
        self.positions, self.total, self.at_output = positions, int(total), bool(at_output)
        for number in range(len(positions)):
            self[str(number)] = nn.Identity()
        if at_output:
            self[OUTPUT] = nn.Identity()

    def settings(self) -> dict[str, Any]:
        return {"positions": self.positions, "total": self.total, "at_output": self.at_output}

    @classmethod
    def add(cls, network: nn.Module, site: str, settings: Mapping[str, Any]) -> Self:
        owner = network.get_submodule(site.rpartition(".")[0])
        name = site.rpartition(".")[2]
        if name != CHILD or hasattr(owner, CHILD):
            raise ValueError(f"expected a new child '{CHILD}' of a module, got '{site}'")
        generated = isinstance(owner, (fx.GraphModule, torch.jit.ScriptModule))
        if generated or type(owner).forward is nn.Sequential.forward:
            raise IncompatibleError(
                f"the activations of {type(owner).__name__} cannot be given modules of their own: "
                f"{'its code is generated' if generated else 'it runs its children in order'}; give each activation a "
                "module in the network itself"
            )
        made = cls(**settings)
        owner.add_module(CHILD, made)
        owner.__class__ = _counting(type(owner))  # type: ignore[arg-type]
        return made

    def around(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``forward``, with the modules behind its activations.

        Raises:
            IncompatibleError: it computed another number of activations than was counted.
        """
        if not self.positions:
            result = forward(*args, **kwargs)
        else:
            counting = _Counting({position: self[str(number)] for number, position in enumerate(self.positions)})
            with counting:
                result = forward(*args, **kwargs)
            if counting.count != self.total:
                raise IncompatibleError(
                    f"a forward computed {counting.count} activations, and {self.total} when they were given modules "
                    "of their own; a network that computes another number from call to call cannot be bounded"
                )
        if not self.at_output:
            return result
        return self[OUTPUT](result) if isinstance(result, Tensor) else (self[OUTPUT](result[0]), *result[1:])


class _Counting(TorchFunctionMode):
    """Counts calls of activation functions and hands results to the modules of their positions."""

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.modules, self.count = modules, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in ACTIVATIONS:
            return func(*args, **kwargs)
        module = self.modules.get(self.count)
        self.count += 1
        if module is None:
            return func(*args, **kwargs)
        if not (kwargs.get("inplace") or func.__name__.endswith("_")):
            return module(func(*args, **kwargs))
        # Whoever holds the tensor sees the module's result in it, and what the module was given stays as it was.
        return args[0].copy_(module(func(args[0].clone(), *args[1:], **kwargs)))


@cache  # one class per class, so that copies have the type of their original
def _counting(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of ``kind`` that runs its forward inside its :class:`ActivationCalls`."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls = self.get_submodule(CHILD)
        assert isinstance(calls, ActivationCalls)
        return calls.around(partial(kind.forward, self), *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _blank, (kind,), self.__dict__

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**names, "forward": forward, "__reduce_ex__": reduce})


def _blank(kind: type[nn.Module]) -> nn.Module:
    """For copying and pickling: the generated class cannot be found by name."""
    return nn.Module.__new__(_counting(kind))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Site:
    """Where an activation is computed: in ``module``, which is the site itself if ``position`` is None; else the
    module's forward computes it as its activation number ``position`` (-1: it is its output)."""

    module: str
    position: int | None


def sites(seen: Walk) -> list[Site]:
    """Where a watched forward computed activations of its images, in order.

    Raises:
        IncompatibleError: in a module that ran more than once, so that no one module can stand for one call.
    """
    found = []
    for activation in seen.activations:
        if not activation.shape or activation.shape[0] != seen.batch:
            continue  # of a table, a window or a query, not of the images
        place, bare = activation.inner, activation.alone
        if bare and seen.calls[place.module] > 1 and activation.outer is not None:
            place, bare = activation.outer, False
        if seen.calls[place.module] > 1:
            raise IncompatibleError(
                f"'{place.module}' runs {seen.calls[place.module]} times per forward and computes an activation each "
                "time, and a bound belongs to one of them; give each call a module of its own in the network"
            )
        found.append(Site(place.module, None if bare else place.position))
    return found


def separate(network: nn.Module, images: Tensor | None = None) -> list[str]:
    """Give every activation of ``network`` a module of its own, in place; the outputs of attention blocks too.

    What the network computes and its ``state_dict`` stay the same. A second time nothing changes.

    Args:
        images: see :func:`walk`.

    Returns:
        The modules' names, in the order in which they run.

    Raises:
        IncompatibleError: see :func:`sites`; or the network cannot be run.
    """
    seen = walk(network, images)
    if _unshare(network, seen):
        seen = walk(network, images)
    found = sites(seen)
    positions: dict[str, list[int]] = {}
    for site in found:
        if site.position is not None:
            positions.setdefault(site.module, []).append(site.position)
    new = [owner for owner in positions if not hasattr(network.get_submodule(owner), CHILD)]
    for owner in new:
        inside = [position for position in positions[owner] if position >= 0]
        settings = {"positions": inside, "total": seen.totals[owner], "at_output": -1 in positions[owner]}
        ActivationCalls.add(network, _child(owner), settings)
    if new:
        _require_same(network, images, seen, found)
    return [site.module if site.position is None else _name(network, site.module, site.position) for site in found]


def _child(owner: str) -> str:
    return f"{owner}.{CHILD}" if owner else CHILD


def _name(network: nn.Module, owner: str, position: int) -> str:
    calls = network.get_submodule(_child(owner))
    assert isinstance(calls, ActivationCalls)
    return f"{_child(owner)}.{OUTPUT if position < 0 else calls.positions.index(position)}"


def _unshare(network: nn.Module, seen: Walk) -> bool:
    """One copy per name of a bare activation that several names share; whether there was one."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    bare = {activation.inner.module for activation in seen.activations if activation.alone}
    shared = [found for found in names.values() if len(found) > 1 and found[0] in bare]
    for first, *others in shared:
        for name in others:
            network.set_submodule(name, copy.deepcopy(network.get_submodule(first)))
    return bool(shared)


def _require_same(network: nn.Module, images: Tensor | None, before: Walk, found: Sequence[Site]) -> None:
    """Raise if the rewritten network computes something else (a module that runs whatever children it has)."""
    after = walk(network, images)
    same = sites(after) == list(found)
    if same and isinstance(before.output, Tensor) and not before.output.is_meta:
        same = torch.allclose(before.output, after.output, rtol=1e-3, atol=1e-4)
    if not same:
        raise IncompatibleError(
            f"{title(network)} computes something else when its activations get modules of their own; give "
            "each activation a module in the network itself"
        )
