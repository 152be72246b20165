"""What a pickle says it would do, without doing it: its opcodes run on a stack of inert values.

Nothing is imported, looked up or called. A global stays a name, a call stays a :class:`Call` with its arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import IO, Any

LIMIT_OPCODES = 4_000_000
"""A thousand tensors take 30,000. Each makes at most a small object, so this bounds the memory too."""


class PickleError(ValueError):
    """No pickle, a truncated one, or more of it than is read."""


@dataclass(frozen=True)
class Global:
    """A name that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that unpickling would make; ``states`` are what it would then hand to ``__setstate__``."""

    function: Any
    arguments: tuple[Any, ...]
    states: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        if isinstance(self.function, Global):
            return str(self.function)
        return f"the result of {self.function.name}" if isinstance(self.function, Call) else "a computed function"


@dataclass(eq=False)
class Reference:
    """A persistent id: in torch's files, a storage."""

    id: Any


class _Mark:
    pass


MARK = _Mark()


@dataclass
class Trace:
    """One pickle, traced. ``error`` is set where it broke off; what came before is kept."""

    value: Any = None
    globals: dict[str, Global] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    error: str | None = None


def trace(stream: IO[bytes]) -> Trace:
    """Trace one pickle, up to its STOP; the stream is left behind it.

    ``stream`` must clamp reads to what it has (BytesIO, mmap): lengths in a pickle are claims.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= LIMIT_OPCODES:
                raise PickleError(f"more than {LIMIT_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        if len(machine.stack) != 1:
            raise PickleError(f"{len(machine.stack)} values are left on the stack")
        machine.trace.value = machine.stack[0]
    except PickleError as error:
        machine.trace.error = str(error)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        # Whatever is raised over an inert stack means the same: no program that pickle.dump writes.
        machine.trace.error = f"it is no whole pickle ({type(error).__name__}: {str(error)[:80]})"
    return machine.trace


class _Machine:
    """The stack and memo of an unpickler. Opcodes without a method here push their argument or are refused."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.trace = Trace()

    def step(self, name: str, argument: Any) -> None:
        action = _ACTIONS.get(name)
        if action is None:
            raise PickleError(f"opcode {name} is not used by torch.save")
        action(self, argument)

    def to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is MARK:
                found = self.stack[position + 1 :]
                del self.stack[position:]
                return found
        raise PickleError("a mark is missing")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("a mark where a value should be")
        return value

    def found_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            module, name = "a computed module", "a computed name"
        found = Global(module, name)
        self.trace.globals.setdefault(str(found), found)
        self.stack.append(found)

    def call(self, function: Any, arguments: Any) -> None:
        made = Call(function, tuple(arguments) if isinstance(arguments, (tuple, list)) else (arguments,))
        self.trace.calls.append(made)
        self.stack.append(made)

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, Call):  # a class's or a plain value's attributes would be set
            self.trace.calls.append(target := Call(Global("object", "__setstate__"), (target,)))
            self.stack[-1] = target
        target.states.append(state)

    def refer(self, identity: Any) -> None:
        found = Reference(identity)
        self.trace.references.append(found)
        self.stack.append(found)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target.states.append(items)
        elif isinstance(target, set):
            target.update(_key(item) for item in items)
        else:
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        if isinstance(target, Call):
            target.states.append(pairs)
        else:
            target.update(pairs)


def _key(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise PickleError("an unhashable key") from None
    return value


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _pop_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, _: Any) -> None:
        items = tuple(machine.pop() for _ in range(size))[::-1]
        machine.stack.append(items)

    return action


def _nothing(machine: _Machine, _: Any) -> None:
    pass


def _remember(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _called_from_mark(machine: _Machine) -> None:
    function, *arguments = machine.to_mark()
    machine.call(function, arguments)


def _reduce(machine: _Machine, keywords: bool = False) -> None:
    named = [machine.pop()] if keywords else []
    arguments, function = machine.pop(), machine.pop()
    machine.call(function, [*arguments, *named] if isinstance(arguments, (tuple, list)) else arguments)


def _named(machine: _Machine, argument: str) -> None:
    machine.found_global(*argument.split(" ", 1))


def _instance(machine: _Machine, argument: str) -> None:
    arguments = machine.to_mark()
    _named(machine, argument)
    machine.call(machine.pop(), arguments)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.found_global(module, name)


def _extension(machine: _Machine, code: Any) -> None:
    machine.found_global("copyreg extension", str(code))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    "STOP": _nothing,
    **dict.fromkeys(
        (
            "INT",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG",
            "LONG1",
            "LONG4",
            "FLOAT",
            "BINFLOAT",
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
        ),
        _push,
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_SET": _constant(set),
    "MARK": _constant(lambda: MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.to_mark() and None,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    "TUPLE1": _pop_tuple(1),
    "TUPLE2": _pop_tuple(2),
    "TUPLE3": _pop_tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine.to_mark()),
    "DICT": lambda machine, _: (
        (
            machine.stack.append(items := machine.to_mark()),
            machine.stack.pop(),
            machine.stack.append({}),
            machine.set_items(items),
        )
        and None
    ),
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(_key(item) for item in machine.to_mark())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "GLOBAL": _named,
    "STACK_GLOBAL": lambda machine, _: _stack_global(machine),
    "INST": _instance,
    "OBJ": lambda machine, _: _called_from_mark(machine),
    "REDUCE": lambda machine, _: _reduce(machine),
    "NEWOBJ": lambda machine, _: _reduce(machine),
    "NEWOBJ_EX": lambda machine, _: _reduce(machine, keywords=True),
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": lambda machine, argument: machine.refer(argument),
    "BINPERSID": lambda machine, _: machine.refer(machine.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
}
