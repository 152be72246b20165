"""Many record files at once, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from backdoor_bench.report.reading import Rows, UnreadableError, read

FEWEST = 4000
"""Files that are worth a second process."""
CHUNK = 1000

Part = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[str, str, str]]]
"""Rows of runs, rows of stages, and (path, kind, reason) of what could not be read."""


def read_all(source: str, files: Sequence[tuple[str, str]]) -> Iterator[Part]:
    """The rows of record files, in their order, some at a time.

    Args:
        source: what the rows say they are from.
        files: pairs of name and path.
    """
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    workers = min(_cores(), len(chunks))
    # Only Linux forks safely here: the workers parse JSON and take no lock that a thread could hold. Starting them
    # in another way would run a caller's script again that has no `if __name__ == "__main__"`.
    if len(files) < FEWEST or workers < 2 or sys.platform != "linux":
        yield from map(partial(_part, source), chunks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        # A few chunks ahead, so that what is done and not taken yet stays small.
        queue = deque(pool.submit(_part, source, chunk) for chunk in chunks[: 2 * workers])
        rest = iter(chunks[2 * workers :])
        while queue:
            done = queue.popleft()
            queue += [pool.submit(_part, source, chunk) for chunk in islice(rest, 1)]
            yield done.result()


def _part(source: str, files: Sequence[tuple[str, str]]) -> Part:
    rows = Rows()
    skipped = []
    for name, path in files:
        try:
            rows.add(read(path), source, name)
        except UnreadableError as error:
            skipped.append((path, error.kind, str(error)))
    return rows.runs, rows.stages, skipped


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
