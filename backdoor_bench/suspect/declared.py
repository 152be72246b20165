"""Which tensors a file declares, whether they fit the bytes that are there, and what else its pickles would call."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from backdoor_bench.suspect.container import LEGACY, SAFETENSORS, Container, Refused, readable
from backdoor_bench.suspect.pickles import Call, Global, Reference

STORAGES = {
    "DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1),
}  # fmt: skip
"""torch's names for typed storages, their dtype and bytes per element."""

REBUILD = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
RECONSTRUCT = re.compile(r"numpy\._?core\.multiarray\._reconstruct")
NUMPY = re.compile(r"numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)")
NUMPY_DTYPE = re.compile(r"[<>|=]?[?a-zA-Z]\d{0,3}")
LIMIT_DEPTH = 8


@dataclass(frozen=True)
class Declared:
    """A tensor as a file declares it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    item: int
    count: int


def tensors(container: Container) -> dict[str, Declared]:
    """The tensors by name, nested mappings joined with dots; what cannot be understood is left out."""
    if container.kind == SAFETENSORS:
        return {
            name: Declared(tuple(entry["shape"]), entry["dtype"], entry["offsets"][1] - entry["offsets"][0])
            for name, entry in container.header.items()
        }
    found: dict[str, Declared] = {}
    for trace in container.pickles.values():
        for name, call in _tensor_calls(trace.value):
            try:
                _, shape, storage = _layout(call)
            except Refused:
                continue
            found.setdefault(name, Declared(shape, storage.dtype, math.prod(shape) * storage.item))
    return found


def foreign(container: Container) -> list[str]:
    """What unpickling would import or call besides what tensors are made with, by name, in order, each once."""
    found: dict[str, None] = {}
    for trace in container.pickles.values():
        called = {id(call.function) for call in trace.calls}
        for call in trace.calls:
            reason = _objection(call)
            if reason is not None:
                found[reason] = None
        for name, named in trace.globals.items():
            if id(named) not in called and not _is_plain_name(named):
                found.setdefault(name, None)
    return list(found)


def check(container: Container) -> None:
    """Raise :class:`Refused` unless the file is tensors in plain containers, each within the bytes that are there."""
    for name, trace in container.pickles.items():
        if trace.error is not None and not (container.kind == LEGACY and foreign(container)):
            raise Refused(f"its {name} cannot be understood: {trace.error}")
    calls = foreign(container)
    if calls:
        raise Refused(
            f"its pickle would call {_few(calls)}, and weights need no such call; nothing was executed. "
            "Where you trust it, save the state_dict alone as .safetensors"
        )
    if container.kind == LEGACY and len(container.pickles) < 5:
        raise Refused("it is a plain pickle, and torch.save did not write it")
    storages: dict[str, int] = {}
    members = {name.partition("/data/")[2]: size for name, size in container.sizes.items()}
    for trace in container.pickles.values():
        for reference in trace.references:
            storage = _storage(reference)
            storages[storage.key] = max(storages.get(storage.key, 0), storage.count * storage.item)
        for call in trace.calls:
            if call.name == REBUILD:
                _check_extent(call)
    for key, declared in storages.items():
        # A zip file has one member per storage; of the legacy format only the sum is known before reading.
        there = members.get(key, 0)
        if container.kind != LEGACY and declared > there:
            raise Refused(f"its storage {key} declares {readable(declared)}, and the file has {readable(there)} of it")
    if sum(storages.values()) > container.bytes:
        raise Refused(
            f"its storages declare {readable(sum(storages.values()))}, and the file has {readable(container.bytes)}"
        )


def _check_extent(call: Call) -> None:
    """A tensor within its storage, and no larger: torch enlarges a storage that is too small for what is declared."""
    offset, shape, storage = _layout(call)
    strides = _naturals(call.arguments[3])
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if count else offset - 1
    if len(strides) != len(shape) or last >= storage.count or count > storage.count:
        raise Refused(
            f"it declares a tensor of shape {list(shape)} ({readable(count * storage.item)}) over a storage of "
            f"{readable(storage.count * storage.item)}"
        )


def _layout(call: Call) -> tuple[int, tuple[int, ...], _Storage]:
    """Offset, shape and storage of a ``_rebuild_tensor_v2``; strides are its fourth argument."""
    if len(call.arguments) < 4 or not isinstance(call.arguments[0], Reference):
        raise Refused("it rebuilds a tensor from what is no storage")
    (offset,) = _naturals((call.arguments[1],))
    shape = _naturals(call.arguments[2])
    if len(_naturals(call.arguments[3])) != len(shape):
        raise Refused(f"it declares a tensor of shape {list(shape)} with strides {call.arguments[3]}")
    return offset, shape, _storage(call.arguments[0])


def _storage(reference: Reference) -> _Storage:
    parts = reference.id
    try:
        kind, named, key, _, count = parts[:5]
        dtype, item = STORAGES[named.name]
        (count,) = _naturals((count,))
        plain = kind == "storage" and named.module == "torch" and isinstance(key, str) and not any(parts[5:])
    except (ValueError, KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise Refused(f"it refers to a storage in a way that torch.save of plain tensors does not ({str(parts)[:60]})")
    return _Storage(key, dtype, item, count)


def _naturals(values: Any) -> tuple[int, ...]:
    values = tuple(values.arguments[0]) if isinstance(values, Call) and values.name == "torch.Size" else values
    fine = isinstance(values, (tuple, list)) and all(type(n) is int and 0 <= n < 2**48 for n in values)
    if not fine or len(values) > 16:
        raise Refused(f"{str(values)[:60]} is no shape, stride or offset")
    return tuple(values)


def _tensor_calls(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Call]]:
    """The tensors in nested mappings and sequences, as the calls that make them."""
    if depth > LIMIT_DEPTH:  # a mapping may hold itself
        return
    if isinstance(value, Call) and value.name == PARAMETER and value.arguments:
        value = value.arguments[0]
    if isinstance(value, Call) and value.name == REBUILD:
        yield prefix, value
        return
    for name, item in items(value):
        yield from _tensor_calls(item, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def items(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a traced mapping or sequence holds, by key."""
    if isinstance(value, Call):  # an OrderedDict, or an object's attributes
        for state in value.states:
            if isinstance(state, dict):
                yield from state.items()
    elif isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _objection(call: Call) -> str | None:
    """What is wrong with a call, or None for what a file of tensors (or NumPy arrays beside them) is made with."""
    name, arguments = call.name, call.arguments
    plain = {
        "collections.OrderedDict": lambda: arguments == (),
        "torch.Size": lambda: len(arguments) == 1 and isinstance(arguments[0], (tuple, list)),
        "torch.device": lambda: all(isinstance(argument, (str, int)) for argument in arguments),
        "_codecs.encode": lambda: [type(argument) for argument in arguments] == [str, str],
        REBUILD: lambda: not call.states,
        PARAMETER: lambda: not call.states and bool(arguments) and isinstance(arguments[0], Call),
    }
    if name in plain:
        return None if plain[name]() else f"{name} in an unusual way"
    if RECONSTRUCT.fullmatch(name):  # NumPy's own pickles always begin with an empty array
        shape_fits = len(arguments) == 3 and str(arguments[0]) == "numpy.ndarray" and arguments[1] == (0,)
        return None if shape_fits else f"{name} in an unusual way"
    if name == "numpy.dtype":
        known = bool(arguments) and isinstance(arguments[0], str) and NUMPY_DTYPE.fullmatch(arguments[0])
        # Subarrays, fields and metadata: what an array of numbers has none of.
        fits = known and all(isinstance(state, tuple) and not any(state[2:5]) for state in call.states)
        return None if fits else f"{name} in an unusual way"
    return None if NUMPY.fullmatch(name) else name


def _is_plain_name(named: Global) -> bool:
    """Names that are not called: storages, dtypes, the class of an array."""
    text = str(named)
    if named.module == "torch":
        return named.name in STORAGES or named.name in {dtype for dtype, _ in STORAGES.values()}
    return text in (REBUILD, PARAMETER, "collections.OrderedDict") or bool(NUMPY.fullmatch(text))


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
