"""What kind of file it is, and its outer shape, checked against its real size before anything in it is believed."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from backdoor_bench.errors import UntrustedError
from backdoor_bench.suspect.pickles import Trace, trace

GIB = 2**30
SAFE_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("int64", 8),
    "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
LIMIT_BYTES = 4 * GIB
LIMIT_PICKLE = 64 * 2**20
LIMIT_HEADER = 8 * 2**20
LIMIT_MEMBERS = 100_000

END_OF_ZIP = b"PK\x05\x06"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
"""Magic number, protocol, system, object, storage keys; the storages' bytes follow."""

SAFETENSORS, ZIP, LEGACY, TORCHSCRIPT = "safetensors", "torch zip", "torch legacy", "TorchScript archive"


class Refused(UntrustedError):
    """A model file that is not read, and why, in one sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(printable(why))


def printable(text: str) -> str:
    """Text of somebody's file without what would steer a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


@dataclass(frozen=True)
class Container:
    """A model file's outer shape.

    Args:
        kind: one of the four formats.
        pickles: the pickles inside, by member name, traced.
        sizes: bytes of each zip member.
        header: safetensors' header: name to dtype, shape and offsets.
        metadata: safetensors' metadata.
        code: members that are program text.
    """

    kind: str
    bytes: int
    pickles: Mapping[str, Trace] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    header: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    code: tuple[str, ...] = ()


@contextmanager
def open_file(path: str | Path, limit_bytes: int = LIMIT_BYTES) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size; a link to one is followed, as download caches are made of links.

    Raises:
        Refused: it is missing, empty, larger than the limit, or no regular file (it is not opened then).
    """
    path = Path(path)
    try:
        _require_regular(path, path.stat().st_mode)
        # Between the two looks somebody may have put a FIFO there, which would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise Refused(f"{str(path)!r} is no path: {error}") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _require_regular(path, found.st_mode)
        if not found.st_size:
            raise Refused(f"{path} is empty")
        if found.st_size > limit_bytes:
            raise Refused(f"{path} has {readable(found.st_size)}, more than the {readable(limit_bytes)} that are read")
        yield file, found.st_size


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise Refused(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}; expected a regular file")


def look(file: BinaryIO, size: int) -> Container:
    """Find out the format and check the outer shape. Reads directories, headers and pickles, no tensor.

    Raises:
        Refused: none of the formats, or a shape that does not fit the file.
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] == b"PK\x03\x04" or start[:4] == END_OF_ZIP:
        return _zip(file, size)
    if len(start) > 8 and start[8:9] == b"{":
        return _safetensors(file, size)
    if start[:1] == b"\x80":
        return _legacy(file, size)
    raise Refused("its format is unknown; expected .safetensors, or a .pt or .pth file that torch.save wrote")


def _zip(file: BinaryIO, size: int) -> Container:
    # With a comment behind it, two readers may find two different directories.
    file.seek(-22, os.SEEK_END)
    end = file.read(22)
    if end[:4] != END_OF_ZIP or end[20:] != b"\0\0":
        raise Refused("its zip directory is not at the end of the file; torch.save puts it there")
    if _directory_size(file, end) > LIMIT_HEADER:
        raise Refused(f"its zip directory is larger than {readable(LIMIT_HEADER)}")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members, size)
            sizes = {member.filename: member.file_size for member in members}
            names = [name for name in sizes if name.endswith(".pkl")]
            if sum(sizes[name] for name in names) > LIMIT_PICKLE:
                raise Refused(
                    f"its pickles have {readable(sum(sizes[name] for name in names))}; those of tensors are small"
                )
            pickles = {name: trace(io.BytesIO(archive.read(name))) for name in names}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise Refused(f"it is a damaged zip file ({error})") from None
    code = tuple(name for name in sizes if _is_code(name))
    if code or any(name.split("/")[-1] == "constants.pkl" for name in sizes):
        return Container(TORCHSCRIPT, size, pickles, sizes, code=code)
    if not any(name.split("/")[-1] == "data.pkl" for name in sizes):
        raise Refused("it is a zip file without a data.pkl, so torch.save did not write it")
    return Container(ZIP, size, pickles, sizes)


def _directory_size(file: BinaryIO, end: bytes) -> int:
    """Bytes of the zip directory, which is held in memory; large files have the number in a record of its own."""
    if end[12:16] != b"\xff" * 4:
        return int.from_bytes(end[12:16], "little")
    file.seek(-42, os.SEEK_END)
    locator = file.read(20)
    if locator[:4] != b"PK\x06\x07":
        raise Refused("its zip directory cannot be found")
    file.seek(int.from_bytes(locator[8:16], "little") & (2**62 - 1))
    return int.from_bytes(file.read(56)[40:48], "little")


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """torch.save compresses nothing, so a member cannot be larger than the file, nor all of them together."""
    names = [member.filename for member in members]
    if len(names) > LIMIT_MEMBERS:
        raise Refused(f"it has {len(names):,} zip members, more than {LIMIT_MEMBERS:,}")
    if len({name.lower() for name in names}) < len(names):  # torch's reader tells no case
        raise Refused("two of its zip members have the same name")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if member.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise Refused(f"its zip member {member.filename!r} points outside the archive")
        packed = member.compress_type != zipfile.ZIP_STORED or bool(member.flag_bits & 1)
        if packed and not _is_code(member.filename):  # TorchScript compresses its program text, which is not read
            raise Refused(
                f"its zip member {member.filename!r} is compressed or encrypted and declares "
                f"{readable(member.file_size)}; torch.save does neither"
            )
    if len({name.partition("/")[0] for name in names}) > 1:
        raise Refused("its zip members lie in more than one folder; torch.save makes one")
    declared = sum(member.compress_size for member in members)
    if declared > size or any(member.file_size > size for member in members if not _is_code(member.filename)):
        raise Refused(f"its zip members declare {readable(declared)}, and the file has {readable(size)}")


def _is_code(name: str) -> bool:
    return "/code/" in name and not name.endswith(".pkl")


def _safetensors(file: BinaryIO, size: int) -> Container:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, LIMIT_HEADER):
        raise Refused(f"its safetensors header declares {readable(length)}, and the file has {readable(size)}")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _entry(name, entry) for name, entry in header.items()}
        ends = sorted(tuple(entry["offsets"]) for entry in tensors.values())
        if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
            raise ValueError("its metadata is no mapping of texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(
            f"its safetensors header cannot be understood ({str(error)[:80] or type(error).__name__})"
        ) from None
    position = 0
    for span in ends:
        if span[0] != position:
            raise Refused("its safetensors offsets overlap or leave gaps")
        position = span[1]
    if position != size - 8 - length:
        raise Refused(
            f"its tensors declare {readable(position)}, and the file has {readable(size - 8 - length)} for them"
        )
    return Container(SAFETENSORS, size, header=tensors, metadata=metadata)


def _entry(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    dtype, item = SAFE_DTYPES[entry["dtype"]]
    shape = [_natural(n) for n in entry["shape"]]
    start, end = (_natural(n) for n in entry["data_offsets"])
    if end - start != math.prod(shape) * item:
        raise ValueError(f"{name} is {dtype} {shape}, and its offsets span {end - start} bytes")
    return {"dtype": dtype, "shape": shape, "offsets": [start, end]}


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise ValueError(f"{value!r} is no size")
    return value


def _legacy(file: BinaryIO, size: int) -> Container:
    pickles: dict[str, Trace] = {}
    names = ("magic number", "protocol", "system", "object", "storage keys")
    with mmap.mmap(file.fileno(), min(size, LIMIT_PICKLE), access=mmap.ACCESS_READ) as view:
        for name in names:
            pickles[name] = trace(view)  # type: ignore[arg-type]
            if pickles[name].error is not None:
                break
            if name == "magic number" and pickles[name].value != LEGACY_MAGIC:
                break  # a plain pickle, of whatever
    return Container(LEGACY, size, pickles)


def readable(count: int) -> str:
    """Bytes as a person reads them."""
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * GIB else f"{count:.3g} bytes"
    return f"{count} bytes"
