"""What a command was told to write."""

from __future__ import annotations

from pathlib import Path

from backdoor_bench.errors import StoreError


def write(text: str, target: Path) -> None:
    """Write a text to a file, and make its folder.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, newline="")  # a CSV has its own line ends
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}; choose another place") from error
