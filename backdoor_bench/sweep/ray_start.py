"""Ray itself: started on this machine, or joined where it runs."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray would start workers at nice 15: whatever else runs on the machine would all but halt them. A sweep has the
# priority that its command was given.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from backdoor_bench.errors import BenchError, ConfigError

OBJECT_STORE_BYTES = 100 * 2**20  # jobs and reports are kilobytes
SECONDS_TO_ANSWER = 10.0


def start(address: str | None, cores: int) -> None:
    """Start Ray with so many cores, or join the cluster at ``address``.

    Raises:
        ConfigError: nothing answers at the address.
        BenchError: Ray does not start on this machine.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES}  # fmt: skip
    else:
        options |= {"address": address}
    try:
        if address is not None:
            _knock(address)
        ray.init(**options)
    except Exception as error:  # Ray has no class of its own for what goes wrong here
        raise _not_there(address, error) from None


def _not_there(address: str | None, error: Exception) -> BenchError:
    """What to do about a Ray that cannot be had."""
    if address is None:
        return BenchError(
            f"Ray did not start on this machine ({first_line(error)}); try again when less else is going on here, or "
            "do without: hydra.launcher.workers=1 does one run after the other"
        )
    return ConfigError(
        f"no Ray cluster answers at address={address} ({first_line(error)}); start one with 'ray start --head' there "
        "and 'ray start --address=HOST:6379' on the other machines, or leave the address out: Ray is then started on "
        "this machine"
    )


def _knock(address: str) -> None:
    """Raise OSError at once if nobody listens at ``host:port``; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()


def first_line(error: BaseException) -> str:
    """An error in a few words; Ray's own are paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
