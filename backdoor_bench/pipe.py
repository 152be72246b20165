"""A command whose reader has left, as in ``... --help | head -1``, ends without a word, as other programs do."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import ParamSpec

Given = ParamSpec("Given")

LEFT = 128 + signal.SIGPIPE
"""As a shell has it: 128 and the number of the signal."""


def quiet(main: Callable[Given, int]) -> Callable[Given, int]:
    """A command's ``main`` that exits with :data:`LEFT` once nobody reads what it prints.

    Python turns the broken pipe into an exception, of which Hydra would print the stack trace; the signal comes before
    anybody can catch that. Killed by it, as C programs are, a command would also die of a socket's broken pipe.
    """

    @wraps(main)
    def command(*args: Given.args, **kwargs: Given.kwargs) -> int:
        ours = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        before = signal.signal(signal.SIGPIPE, _broken) if ours else None
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # a short text is only written now
        except BrokenPipeError:
            if not _left():
                raise
            return LEFT
        finally:
            if ours:
                signal.signal(signal.SIGPIPE, before)

    return command


def _broken(number: int, frame: FrameType | None) -> None:
    if _left():
        raise SystemExit(LEFT)


def _left() -> bool:
    """Whether the reader of what is printed has left; what is still to be printed then goes nowhere."""
    found = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # no file, as in a notebook
            continue
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            found = True
    return found
