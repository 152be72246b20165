"""Records as data frames: one row per run, one per stage. What cannot be read is named, counted and left out."""

from __future__ import annotations

import math
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_bench.errors import ConfigError, StoreError, unknown
from backdoor_bench.report import chance, pool
from backdoor_bench.report.counting import counting, twins
from backdoor_bench.report.reading import RUN, STAGE
from backdoor_bench.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame, Series

COMPACTED = "records.parquet"
"""A store's records in one file beside ``runs/``; records that it lacks are read from their own files."""
FIRST = "python -m backdoor_bench +attack=badnet +defense=unibp"
_FORMAT = b"backdoor_bench records 1"


@dataclass(frozen=True)
class Skipped:
    """One file that does not count, and why; ``kind`` is the word it is counted by."""

    path: str
    kind: str
    why: str


@dataclass(frozen=True)
class Records:
    """Runs, their stages, and what was left out.

    Args:
        runs: one row per run, by key; columns :data:`reading.RUN` and ``regime`` (``spc 10``, ``clean 5%``; null
            without a defense). Failed runs are in it: ``status``.
        stages: one row per stage of these runs; columns :data:`reading.STAGE`.
        skipped: files that hold no readable record.
        repeated: how many records were left out because another of the same run counts (copies, earlier attempts,
            earlier versions).
    """

    runs: DataFrame
    stages: DataFrame
    skipped: Sequence[Skipped] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> DataFrame:
        """The runs that were measured."""
        return self.runs[self.runs.status == "ok"]

    def notes(self) -> list[str]:
        """What a reader must know of the set: counts of what failed, is weak, or was left out and why."""
        lines = [f"{counted(len(self.runs), 'run')}, {counted(self.ok.victim.nunique(), 'victim')}"]
        failed, weak = int((self.runs.status == "failed").sum()), int(self.ok.weak_attack.fillna(False).sum())
        lines += [f"{failed:,} failed"] * bool(failed) + [f"{weak:,} of a weak attack"] * bool(weak)
        idle, broken = int(chance.victims(self.ok).sum()), int(chance.purified(self.ok).sum())
        alike = twins(self.ok)
        lines += [f"{alike:,} victims alike in all that records say, the seed too, and each counted: other versions, "
                  "precision or images; choose by victim=KEY or precision="] * bool(alike)  # fmt: skip
        lines += [f"{idle:,} of a victim at chance"] * bool(idle)
        lines += [f"{broken:,} left at chance by the defense"] * bool(broken)
        lines += [f"{count:,} {what} not counted again" for what, count in self.repeated.items() if count]
        for kind, count in Counter(skip.kind for skip in self.skipped).items():
            first = next(skip for skip in self.skipped if skip.kind == kind)
            more = f", and {count - 1:,} more" if count > 1 else ""
            lines.append(f"{counted(count, 'file')} skipped ({kind}): {first.path}: {first.why}{more}")
        return lines


def load(sources: Sequence[Path | str] = (), filters: Mapping[str, str] | Sequence[str] = ()) -> Records:
    """The records of stores, folders of record files, single files and Parquet files; of each run the one that counts.

    Args:
        sources: stores (``runs/`` in them is read, through :data:`COMPACTED` where there is one), folders of
            ``KEY/ATTEMPT.json``, ``.json`` files, ``.parquet`` files made by :func:`to_parquet`. None: the store
            (``BACKDOOR_BENCH_STORE``, else ``./store``).
        filters: ``column=value`` texts or a mapping; ``value`` may be several with commas, ``none`` is a null.

    Raises:
        ConfigError: a source that does not exist, an unknown column or value, or nothing left.
    """
    import pandas as pd

    places = [Path(s) for s in sources] or [Path(os.environ.get("BACKDOOR_BENCH_STORE", "./store"))]
    wanted = parse(filters)
    parts: list[tuple[DataFrame, DataFrame]] = []
    runs_read: list[tuple[Any, ...]] = []
    stages_read: list[tuple[Any, ...]] = []
    skipped: list[Skipped] = []
    for place in places:
        names = dict(_files(place))
        done: set[str] = set()
        for compacted in _compacted(place, names, skipped):
            parts.append(compacted)
            done.update(compacted[0].record)
        for own, steps, unread in pool.read_all(str(place), [pair for pair in names.items() if pair[0] not in done]):
            runs_read += own
            stages_read += steps
            skipped += (Skipped(*one) for one in unread)
    parts.append((_frame(runs_read, RUN), _frame(stages_read, STAGE)))
    del runs_read, stages_read
    filled = [part for part in parts if len(part[0])] or parts[-1:]
    runs, repeated = counting(pd.concat([part[0] for part in filled], ignore_index=True))
    if not len(runs):
        raise nothing(places, skipped)
    runs = select(chance.fill(runs.assign(regime=_regimes(runs))), wanted)
    stages = pd.concat([part[1] for part in filled], ignore_index=True).drop_duplicates(["key", "sha256", "position"])
    stages = stages.merge(runs[["key", "sha256"]]).sort_values(["key", "position"], ignore_index=True)
    return Records(runs, stages, skipped, repeated)


def to_parquet(records: Records, target: Path) -> None:
    """Write runs, and stages beside them (``NAME.stages.parquet``); whole or not at all. :func:`load` reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for frame, columns, path in ((records.stages, STAGE, _stages_of(target)), (records.runs, RUN, target)):
        table = pa.Table.from_pandas(frame[list(columns)], preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"format": _FORMAT})
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        finally:
            temporary.unlink(missing_ok=True)


def compact(store: Path | str) -> Path:
    """Write a store's records to its :data:`COMPACTED` file, so that later reports read one file."""
    target = Path(store) / COMPACTED
    to_parquet(load([store]), target)
    return target


def parse(filters: Mapping[str, str] | Sequence[str]) -> dict[str, list[str]]:
    """Filters by column, checked.

    Raises:
        ConfigError: a text without ``=``, or a column that does not exist.
    """
    found: dict[str, list[str]] = {}
    for text in filters.items() if isinstance(filters, Mapping) else filters:
        name, equals, value = (text[0], "=", str(text[1])) if isinstance(text, tuple) else text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is no filter; expected COLUMN=VALUE, as in attack=badnet")
        if name not in (*RUN, "regime"):
            raise unknown("column", name, (*RUN, "regime"))
        found.setdefault(name, []).extend(value.split(","))
    return found


def select(runs: DataFrame, wanted: Mapping[str, Sequence[str]]) -> DataFrame:
    """The runs that fit all filters.

    Raises:
        ConfigError: a value that no run has, or no run that fits them all.
    """
    left = runs
    for column, values in wanted.items():
        masks = [_equal(runs[column], value) for value in values]
        for value, mask in zip(values, masks, strict=True):
            if not mask.any():
                known = runs[column].fillna("none").astype(str).unique()
                raise unknown(f"{column} in these records", value, sorted(known)[:100])
        left = left[np.logical_or.reduce(masks)[runs.index.get_indexer(left.index)]]
    if not len(left):
        text = " ".join(f"{column}={','.join(values)}" for column, values in wanted.items())
        raise ConfigError(f"no record fits {text}; each value occurs, but not together: leave one out")
    return left.reset_index(drop=True)


def nothing(places: Iterable[Path], skipped: Sequence[Skipped] = ()) -> ConfigError:
    """The error for a set without a single record: what to run."""
    why = (
        f" ({counted(len(skipped), 'file')} skipped; the first: {skipped[0].path}: {skipped[0].why})" if skipped else ""
    )
    return ConfigError(f"no records in {', '.join(map(str, places))}{why}; make one first: {FIRST}")


def _equal(column: Series, value: str) -> NDArray[np.bool_]:
    """Where a column has a value that was typed; numbers are compared as numbers."""
    if value.lower() in ("none", "null"):
        return column.isna().to_numpy(bool)
    if column.dtype == "boolean":
        return (column == (value.lower() == "true")).fillna(False).to_numpy(bool)
    if column.dtype == "str":
        return (column == value).fillna(False).to_numpy(bool)
    try:
        return np.isclose(column.astype("float64"), float(value), rtol=1e-9)
    except ValueError:
        raise ConfigError(f"{column.name}={value}: expected a number or none") from None


def regime(spc: float | None, clean_ratio: float | None) -> str | None:
    """How tables name what the defender got: ``spc 10``, ``clean 5%``; None for a run without a defense."""
    if spc is not None and not math.isnan(spc):
        return f"spc {spc:.0f}"
    return None if clean_ratio is None or math.isnan(clean_ratio) else f"clean {100 * clean_ratio:g}%"


def _regimes(runs: DataFrame) -> Series:
    pairs = list(zip(runs.spc.astype("float64"), runs.clean_ratio, strict=True))
    names = {pair: regime(*pair) for pair in set(pairs)}
    return _series([names[pair] for pair in pairs], "str")


def _files(place: Path) -> Iterator[tuple[str, str]]:
    """Name and path of every record file: ``KEY/0001.json``. Files that another process is writing have other names."""
    if place.suffix == ".parquet":
        return
    if place.is_file():
        yield place.name, str(place)
        return
    if not place.is_dir():
        raise ConfigError(f"no store, folder or file {place}; name where records are, or make one first: {FIRST}")
    root = place / "runs" if (place / "runs").is_dir() else place
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                for name in sorted(os.listdir(entry.path)):
                    if name.endswith(".json"):
                        yield f"{entry.name}/{name}", os.path.join(entry.path, name)
            elif entry.name.endswith(".json") and root == place:
                yield entry.name, entry.path


def _compacted(place: Path, names: Mapping[str, str], skipped: list[Skipped]) -> Iterator[tuple[DataFrame, DataFrame]]:
    """A Parquet file that was named; or a store's own, as far as its records are still there."""
    own = place / COMPACTED
    if place.suffix == ".parquet":
        try:
            yield _parquet(place, RUN), _parquet(_stages_of(place), STAGE)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{place} holds no records: {error}") from error
    elif own.is_file():
        try:
            runs, stages = _parquet(own, RUN), _parquet(_stages_of(own), STAGE)
        except (OSError, ValueError) as error:
            skipped.append(Skipped(str(own), "damaged", f"{error}; read from {len(names)} single files instead"))
            return
        yield runs[runs.record.isin(list(names))].assign(source=str(place)), stages


def _parquet(path: Path, columns: Mapping[str, str]) -> DataFrame:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"format") != _FORMAT:
        raise ValueError(f"not written by this version's to_parquet (expected {_FORMAT.decode()})")
    found = table.to_pandas()
    missing = sorted(set(columns) - set(found) - set(chance.FIELDS))  # files older than these two are still read
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    return found.reindex(columns=list(columns)).astype(dict(columns))


def _stages_of(path: Path) -> Path:
    return path.with_suffix(".stages.parquet")


def _frame(rows: Sequence[tuple[Any, ...]], columns: Mapping[str, str]) -> DataFrame:
    import pandas as pd

    values = zip(*rows, strict=True) if rows else ([] for _ in columns)
    return pd.DataFrame({name: _series(column, columns[name]) for name, column in zip(columns, values, strict=True)})


def _series(values: Iterable[Any], dtype: str) -> Series:
    import pandas as pd

    return pd.Series(list(values), dtype=dtype)
