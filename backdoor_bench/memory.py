"""What a process keeps for later: values by what they depend on, the least recently used forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from backdoor_bench.errors import BenchError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Answers = OrderedDict[K, tuple[T, None] | tuple[None, BenchError]]
"""By question: what was made, or why it cannot be."""


def remember(memory: OrderedDict[K, T], name: K, keep: int, make: Callable[[], T]) -> T:
    """The remembered value, made if it is new; the least recently used beyond ``keep`` are forgotten."""
    if name not in memory:
        memory[name] = make()
    memory.move_to_end(name)
    while len(memory) > keep:
        memory.popitem(last=False)
    return memory[name]


def answer(memory: Answers[K, T], question: K, keep: int, make: Callable[[], T]) -> T:
    """As :func:`remember`, where a BenchError is an answer, too: it is raised again without another try."""

    def attempt() -> tuple[T, None] | tuple[None, BenchError]:
        try:
            return make(), None
        except BenchError as error:
            return None, error

    found, objection = remember(memory, question, keep, attempt)
    if objection is not None:
        raise objection.with_traceback(None)
    return found  # type: ignore[return-value]
