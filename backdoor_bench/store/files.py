"""Writing so that a file is whole or not there; reading so that a damaged one is noticed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backdoor_bench.errors import UnwritableError
from backdoor_bench.store.lock import Lock


@contextmanager
def whole(target: Path, scratch: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends, or nothing.

    ``scratch`` is on the same file system. If ``target`` exists by then, it stays and the new one is dropped; with
    ``replace`` the other way round, and only when the new one is complete.

    Raises:
        UnwritableError: the disk is full or cannot be written; nothing is left behind.
    """
    with _reserved(scratch, target) as folder:
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            _flush(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if replace and target.exists():
            with _reserved(scratch, target) as old:
                target.rename(old)
                folder.rename(target)
            return
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


@contextmanager
def _reserved(scratch: Path, target: Path) -> Iterator[Path]:
    """A free name in ``scratch``, locked as long as its writer lives; what is left under it is removed at the end."""
    path = scratch / uuid.uuid4().hex
    lock = Lock(path.with_name(f"{path.name}.lock"))
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        yield path
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        _remove(path)
        lock.release()


def leftovers(scratch: Path, remove: bool = False) -> list[Path]:
    """What dead writers left half written in ``scratch``, or had left if ``remove``. The living keep theirs.

    Only names that :func:`_reserved` gives: whatever else lies there is somebody's own.
    """
    found = []
    names = {path.name.removesuffix(".lock") for path in scratch.glob("*")}
    for path in sorted(scratch / name for name in names if re.fullmatch(r"[0-9a-f]{32}", name)):
        lock = Lock(path.with_name(f"{path.name}.lock"))
        try:
            if path.exists() and not lock.is_held():
                found.append(path)
            if remove and lock.acquire(wait=False):
                _remove(path)
        except OSError:  # somebody else's, or the store is read-only
            continue
        finally:
            lock.release()
    return found


def discard(path: Path, scratch: Path) -> None:
    """Remove a file or folder so that nobody ever sees half of it.

    Raises:
        UnwritableError: it may not be removed.
    """
    with _reserved(scratch, path) as place:
        path.rename(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError) -> UnwritableError:
    """The message for a disk that is full or read-only."""
    # safetensors gives its reason in words alone.
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return UnwritableError(
        f"cannot write {target}: {'the disk is full' if full else error.strerror or error}; no half file was left. "
        f"{'Free some space' if full else 'Check the permissions'}, or choose another place with store_dir=PATH"
    )


def write_json(path: Path, value: Mapping[str, Any], scratch: Path | None = None) -> None:
    """Sealed, flushed, then renamed into place.

    ``scratch`` is a folder of the same file system for what is half written; without it, the file's own.

    Raises:
        UnwritableError: the disk is full or cannot be written; nothing is left behind.
    """
    text = json.dumps(seal(value), indent=1, sort_keys=False, allow_nan=False)
    with _reserved(scratch or path.parent, path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A sealed JSON object.

    Raises:
        ValueError: truncated, not JSON, or altered since it was written.
    """
    value = json.loads(path.read_text())
    if not isinstance(value, dict) or seal(value) != value:
        raise ValueError("its contents do not match its checksum")
    return value


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON has it (NaN is null), with a ``sha256`` over the rest. It notices damage, not malice."""
    body = {str(key): _plain(item) for key, item in value.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def _plain(value: Any) -> Any:
    """What a JSON file gives back: keys as strings, tuples as lists, null for a number that is none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``NAME.damaged-N`` beside it, so that nothing is lost."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
