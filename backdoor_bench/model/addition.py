"""Modules that a stage adds to a network, and how they survive being stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import nn

from backdoor_bench.errors import BenchError, UntrustedError
from backdoor_bench.trust import trusted_class


class Added(nn.Module):
    """A module that a network did not come with.

    It names its constructor's arguments in :meth:`settings`; what it learned is in its ``state_dict``. So a purified
    network is: its configuration, what was added, its tensors.
    """

    version: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON values."""
        return {}

    @classmethod
    def add(cls, network: nn.Module, site: str, settings: Mapping[str, Any]) -> Self:
        """Put a new one into ``network`` at the name ``site``."""
        raise NotImplementedError


class Addition(Added):
    """A module that takes the place of ``inner`` and calls it. A subclass takes ``inner`` first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @classmethod
    def add(cls, network: nn.Module, site: str, settings: Mapping[str, Any]) -> Self:
        made = cls(network.get_submodule(site), **settings)
        attach(network, site, made)
        return made


def attach(network: nn.Module, site: str, addition: Addition) -> None:
    """Put ``addition``, built around the module at ``site``, in that module's place."""
    assert addition.inner is network.get_submodule(site)
    network.set_submodule(site, addition)


def describe(network: nn.Module) -> list[dict[str, Any]]:
    """What was added to the network, in the order in which to put it back."""
    return [
        {"site": name, "kind": f"{type(module).__module__}.{type(module).__qualname__}", "settings": module.settings()}
        for name, module in network.named_modules()
        if isinstance(module, Added)
    ]


def restore(network: nn.Module, additions: Sequence[Mapping[str, Any]], packages: Sequence[str] = ()) -> None:
    """Put described additions back in place, empty; their tensors come with ``load_state_dict``.

    Raises:
        UntrustedError: a description names something that is not an :class:`Added` of a trusted package, or does not
            fit the network.
    """
    for entry in additions:
        kind = trusted_class(str(entry.get("kind")), Added, packages)
        try:
            kind.add(network, entry["site"], entry["settings"])
        except (AttributeError, BenchError, KeyError, TypeError, ValueError) as error:
            raise UntrustedError(f"a stored {kind.__name__} does not fit {type(network).__name__}: {error}") from error
