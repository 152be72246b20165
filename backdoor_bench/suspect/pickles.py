"""What a pickle says it would do, without doing it: its opcodes run on a stack of inert values.

Nothing is imported, looked up or called. A global stays a name, a call stays a :class:`Call` with its arguments.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import IO, Any

LIMIT_OPCODES = 2_000_000
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
    """The stack and memo of an unpickler; the methods in capitals are opcodes, by their names in pickletools."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.protocol = 0
        self.trace = Trace()

    def step(self, opcode: str, argument: Any) -> None:
        action = getattr(self, opcode, None)
        if action is None:
            raise PickleError(f"opcode {opcode} is not used by torch.save")
        action(argument)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("a mark where a value should be")
        return value

    def to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is MARK:
                found = self.stack[position + 1 :]
                del self.stack[position:]
                return found
        raise PickleError("a mark is missing")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            module, name = "a computed module", "a computed name"
        elif self.protocol < 3:  # it has Python 2's names
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        found = Global(module, name)
        self.trace.globals.setdefault(str(found), found)
        self.stack.append(found)

    def call(self, function: Any, arguments: Any) -> None:
        made = Call(function, tuple(arguments) if isinstance(arguments, (tuple, list)) else (arguments,))
        self.trace.calls.append(made)
        self.stack.append(made)

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

    # -- opcodes: values -----------------------------------------------------------------------------------------

    def PROTO(self, version: int) -> None:
        self.protocol = version

    def FRAME(self, _: Any) -> None:
        pass

    STOP = FRAME

    def BININT(self, value: Any) -> None:
        self.stack.append(value)

    INT = BININT1 = BININT2 = LONG = LONG1 = LONG4 = FLOAT = BINFLOAT = BININT
    STRING = BINSTRING = SHORT_BINSTRING = UNICODE = BINUNICODE = SHORT_BINUNICODE = BINUNICODE8 = BININT
    BINBYTES = SHORT_BINBYTES = BINBYTES8 = BYTEARRAY8 = NONE = BININT

    def NEWTRUE(self, _: Any) -> None:
        self.stack.append(True)

    def NEWFALSE(self, _: Any) -> None:
        self.stack.append(False)

    def EMPTY_LIST(self, _: Any) -> None:
        self.stack.append([])

    def EMPTY_DICT(self, _: Any) -> None:
        self.stack.append({})

    def EMPTY_TUPLE(self, _: Any) -> None:
        self.stack.append(())

    def EMPTY_SET(self, _: Any) -> None:
        self.stack.append(set())

    def TUPLE1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def TUPLE2(self, _: Any) -> None:
        self.stack.append((self.pop(), self.pop())[::-1])

    def TUPLE3(self, _: Any) -> None:
        self.stack.append((self.pop(), self.pop(), self.pop())[::-1])

    def TUPLE(self, _: Any) -> None:
        self.stack.append(tuple(self.to_mark()))

    def LIST(self, _: Any) -> None:
        self.stack.append(self.to_mark())

    def DICT(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append({})
        self.set_items(items)

    def FROZENSET(self, _: Any) -> None:
        self.stack.append(frozenset(_key(item) for item in self.to_mark()))

    # -- opcodes: filling containers, the stack, the memo --------------------------------------------------------

    def APPEND(self, _: Any) -> None:
        self.extend([self.pop()])

    def APPENDS(self, _: Any) -> None:
        self.extend(self.to_mark())

    ADDITEMS = APPENDS

    def SETITEM(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def SETITEMS(self, _: Any) -> None:
        self.set_items(self.to_mark())

    def MARK(self, _: Any) -> None:
        self.stack.append(MARK)

    def POP(self, _: Any) -> None:
        self.stack.pop()

    def POP_MARK(self, _: Any) -> None:
        self.to_mark()

    def DUP(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def PUT(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    BINPUT = LONG_BINPUT = MEMOIZE = PUT

    def GET(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    BINGET = LONG_BINGET = GET

    # -- opcodes: what would import and call ---------------------------------------------------------------------

    def GLOBAL(self, argument: str) -> None:
        self.name(*argument.split(" ", 1))

    def STACK_GLOBAL(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def EXT1(self, code: Any) -> None:
        self.name("copyreg", f"extension {code}")

    EXT2 = EXT4 = EXT1

    def REDUCE(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    NEWOBJ = REDUCE

    def NEWOBJ_EX(self, _: Any) -> None:
        named, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, (*arguments, named))

    def OBJ(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self.call(function, arguments)

    def INST(self, argument: str) -> None:
        arguments = self.to_mark()
        self.GLOBAL(argument)
        self.call(self.pop(), arguments)

    def BUILD(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Call):  # it would set attributes of a class, or of a plain value
            self.stack.pop()
            self.call(Global("object", "__setstate__"), (target,))
            target = self.stack[-1]
        target.states.append(state)

    def BINPERSID(self, _: Any) -> None:
        self.PERSID(self.pop())

    def PERSID(self, identity: Any) -> None:
        found = Reference(identity)
        self.trace.references.append(found)
        self.stack.append(found)


def _key(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        raise PickleError("an unhashable key") from None
    return value
