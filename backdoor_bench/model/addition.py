"""Modules that a stage puts behind one of the network's own, and how they survive being stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from backdoor_bench.errors import UntrustedError
from backdoor_bench.trust import trusted_class


class Addition(nn.Module):
    """A module that takes the place of ``inner`` and calls it.

    A subclass takes ``inner`` first and names its other constructor arguments in :meth:`settings`; what it learned
    is in its ``state_dict``. So a purified network is: its configuration, its additions, its tensors.
    """

    version: ClassVar[int] = 1

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments besides ``inner``, as plain JSON values."""
        return {}


def attach(network: nn.Module, site: str, addition: Addition) -> None:
    """Put ``addition``, built around the module at ``site``, in that module's place."""
    assert addition.inner is network.get_submodule(site)
    network.set_submodule(site, addition)


def describe(network: nn.Module) -> list[dict[str, Any]]:
    """The network's additions, in the order in which to put them back."""
    return [
        {"site": name, "kind": f"{type(module).__module__}.{type(module).__qualname__}", "settings": module.settings()}
        for name, module in network.named_modules()
        if isinstance(module, Addition)
    ]


def restore(network: nn.Module, additions: Sequence[Mapping[str, Any]], packages: Sequence[str] = ()) -> None:
    """Put described additions back in place, empty; their tensors come with ``load_state_dict``.

    Raises:
        UntrustedError: a description names something that is not an :class:`Addition` of a trusted package, or does
            not fit the network.
    """
    for entry in additions:
        kind = trusted_class(str(entry.get("kind")), Addition, packages)
        try:
            attach(network, entry["site"], kind(network.get_submodule(entry["site"]), **entry["settings"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UntrustedError(f"a stored {kind.__name__} does not fit {type(network).__name__}: {error}") from error
