"""Errors a person can act on. Each message says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class BenchError(Exception):
    """Something the user can mend; printed as one message, without a stack trace."""


class ConfigError(BenchError):
    """The configuration asks for something that does not exist or cannot be."""


class DataError(BenchError):
    """A data set is missing, damaged or too small for what was asked."""


class IncompatibleError(BenchError):
    """A method has no meaning on this network or with this view."""


class DivergedError(BenchError):
    """A loss or a weight became NaN or infinite."""


class StoreError(BenchError):
    """The store could not be read or written."""


class UnwritableError(StoreError):
    """The store takes nothing: its disk is full or read-only."""


class BusyError(StoreError):
    """Another process works on the same, and whoever asked would not wait."""


class UntrustedError(BenchError):
    """A stored file asks for code that is not ours to run."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist: close matches first, then the list."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return ConfigError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(known) or 'none'}.")


def require_whole(name: str, value: object, least: int) -> int:
    """An option's value as a whole number of at least ``least``, also where it is written 5.0.

    Raises:
        ConfigError: it is none.
    """
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not number.is_integer() or number < least:
        raise ConfigError(f"{name}={value}: expected a whole number of at least {least}")
    return value if isinstance(value, int) else int(number)  # a float has no room for all digits of a large one


def root_cause(error: BaseException) -> BaseException:
    """What was raised first: Hydra wraps whatever a constructor raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
