"""Cells as CSV or Parquet, one row each; fractions, as in the records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def csv(cells: DataFrame) -> str:
    """Cells or runs as CSV; a field that a spreadsheet would take for a formula gets an apostrophe."""
    texts = cells.select_dtypes(["str", "object"]).columns
    safe = cells.assign(**{name: cells[name].str.replace(r"^(?=[=+\-@\t\r])", "'", regex=True) for name in texts})
    return safe.to_csv(index=False, lineterminator="\n")


def parquet(cells: DataFrame, target: Path) -> None:
    """Cells or runs as Parquet."""
    cells.to_parquet(target, index=False)
