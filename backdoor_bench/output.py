"""What a command was told to write."""

from __future__ import annotations

from pathlib import Path

from backdoor_bench.errors import StoreError


def card_of(exported: Path) -> Path:
    """The model card beside an exported network: ``out.md`` of ``out.safetensors``, ``out.ts.md`` of ``out.ts``.

    Weights and programs of one name may lie in one folder.
    """
    return exported.with_suffix(".md" if exported.suffix == ".safetensors" else f"{exported.suffix}.md")


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
