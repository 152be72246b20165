"""A stored configuration is somebody's file: what it may name, and what it may not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hydra.utils import instantiate

from backdoor_bench.errors import BenchError, UntrustedError, root_cause

T = TypeVar("T")


def trusted_class(path: str, base: type[T] | tuple[type[T], ...], packages: Sequence[str] = ()) -> type[T]:
    """The class at a dotted path in ``backdoor_bench`` or a named package or module, if it is a subclass of ``base``.

    Args:
        base: or several, of which one is enough.

    Raises:
        UntrustedError: anything else. Nothing outside those packages is even imported.
    """
    module, _, name = path.rpartition(".")
    allowed = ("backdoor_bench", *packages)
    if not any(f"{module}.".startswith(f"{package}.") for package in allowed):
        raise UntrustedError(
            f"a stored configuration names '{path}', which is in none of the trusted packages ({', '.join(allowed)}); "
            "nothing was executed. If it is yours, name its package with trust=[PACKAGE]"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UntrustedError(f"a stored configuration names '{path}', which does not exist here") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        wanted = " or ".join(kind.__name__ for kind in (base if isinstance(base, tuple) else (base,)))
        raise UntrustedError(f"a stored configuration names '{path}', which is no {wanted}; nothing was executed")
    return found


def trusted_instance(
    node: Mapping[str, Any],
    base: type[T],
    packages: Sequence[str] = (),
    nested: type | tuple[type, ...] | None = None,
    **extra: Any,
) -> T:
    """Instantiate a stored, resolved node.

    Its ``_target_`` must pass :func:`trusted_class` for ``base``, every ``_target_`` inside it for ``nested``.
    Interpolations are refused: a stored configuration is resolved.

    Raises:
        UntrustedError: it names what is not ours, or does not fit the class.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UntrustedError(f"a stored configuration has no _target_ where a {base.__name__} was expected")
    kind = trusted_class(node["_target_"], base, packages)
    for inner in _targets({key: value for key, value in node.items() if key != "_target_"}):
        if nested is None:
            raise UntrustedError(f"a stored configuration names '{inner}' inside {kind.__name__}; nothing was executed")
        trusted_class(inner, nested, packages)
    try:
        made = instantiate(dict(node), _convert_="all", **extra)
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, BenchError):
            raise cause from None
        raise UntrustedError(f"a stored configuration does not fit {kind.__name__} as it is here: {cause}") from error
    if not isinstance(made, base):  # _partial_
        raise UntrustedError(f"a stored configuration makes no {base.__name__} of {kind.__name__}")
    return made


def _targets(value: Any) -> Iterator[str]:
    """Every ``_target_`` inside, and every string that Hydra would interpolate."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _targets(inner)
    elif isinstance(value, str) and "${" in value:
        yield value
