"""Every file that an attacker might hand over is refused with one sentence; nothing runs, memory stays bounded."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from backdoor_bench.suspect.container import Refused
from backdoor_bench.suspect.read import read_state_dict

FLAG = "FLAG"
BILLION = 10**9


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any] | Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced


def touch(path: Path) -> Calls:
    """What the malicious files here do: leave a flag beside themselves."""
    return Calls(os.system, f"touch {path.parent / FLAG}")


def saved(value: Callable[[Path], Any], legacy: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(value(path), path, _use_new_zipfile_serialization=not legacy)


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def tensor_pickle(
    count: int = 1, shape: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,), offset: int = 0
) -> bytes:
    """``{"weight": tensor}`` as torch.save writes it, over a storage "0" of ``count`` floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Storage) else None

    class Storage:
        id = ("storage", torch.FloatStorage, "0", "cpu", count)

    rebuilt = Calls(torch._utils._rebuild_tensor_v2, Storage(), offset, shape, stride, False, OrderedDict())
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"weight": rebuilt})
    return buffer.getvalue()


def archive(
    data: bytes, storage: bytes = b"\0" * 4, name: str = "a/data/0", method: int = zipfile.ZIP_STORED
) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("a/data.pkl", data)
            target.writestr(zipfile.ZipInfo(name), storage, method)
            target.writestr("a/version", b"3\n")

    return build


def legacy(data: bytes, count: int = 1) -> Callable[[Path], None]:
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return raw(b"".join([*head, data, pickle.dumps(["0"], 2), struct.pack("<q", count), b"\0" * 4]))


def tensors_file(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _with_member(name: str) -> Callable[[Path], None]:
    """A second storage "0", larger than the first."""

    def build(path: Path) -> None:
        archive(tensor_pickle(1000, (1000,)))(path)
        with zipfile.ZipFile(path, "a") as target:
            target.writestr(name, b"\0" * 4000)

    return build


def overlapping_zip(path: Path) -> None:
    """A hundred members over the same bytes: small on disk, large when read."""
    archive(tensor_pickle(), b"\0" * 4000)(path)
    content = path.read_bytes()
    directory = int.from_bytes(content[-6:-2], "little")
    body, records, end = content[:directory], content[directory:-22], bytearray(content[-22:])
    first = records[: records.index(b"PK\x01\x02", 4)]
    second = records[len(first) :][: records[len(first) + 4 :].index(b"PK\x01\x02") + 4]
    copies = b"".join(second.replace(b"a/data/0", b"a/data/" + bytes([65 + n % 26])) for n in range(26))
    end[8:12] = struct.pack("<HH", 27, 27)
    end[12:16] = struct.pack("<I", len(first) + len(copies))
    path.write_bytes(body + first + copies + bytes(end))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    # a pickle that calls
    "system": (saved(lambda path: {"weight": torch.ones(2), "x": touch(path)}), "would call posix.system"),
    "system, legacy": (saved(lambda path: {"weight": torch.ones(2), "x": touch(path)}, True), "call posix.system"),
    "system, plain pickle": (lambda path: path.write_bytes(pickle.dumps(touch(path))) and None, "call posix.system"),
    "system, protocol 0": (lambda path: archive(pickle.dumps({"w": touch(path)}, 0))(path), "call posix.system"),
    "system by name": (lambda path: archive(pickle.dumps({"w": touch(path)}, 4))(path), "call posix.system"),
    "gadget in torch": (saved(lambda path: {"x": Calls(torch.load, "other.pt")}), "call torch.serialization.load"),
    "gadget in builtins": (saved(lambda path: {"x": Calls(getattr, Calls(__import__, "os"), "system")}), "getattr"),
    "import alone": (saved(lambda path: {"weight": torch.ones(2), "x": subprocess.Popen}), "subprocess.Popen"),
    "whole module": (saved(lambda path: torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "large bytearray": (saved(lambda path: {"x": Calls(bytearray, 10 * BILLION)}), "bytearray"),
    "large tensor class": (saved(lambda path: {"x": Calls(torch.FloatTensor, BILLION)}), "torch.FloatTensor"),
    "filled dictionary": (saved(lambda path: {"x": Calls(OrderedDict, [(1, 2)])}), "in an unusual way"),
    "sparse": (saved(lambda path: {"x": torch.ones(2, 2).to_sparse()}), "_rebuild_sparse_tensor"),
    "TorchScript": (script, "TorchScript"),
    # sizes that are not there
    "10 GB storage": (archive(tensor_pickle(25 * BILLION // 10, (25 * BILLION // 10,))), "declares"),
    "10 GB storage, legacy": (legacy(tensor_pickle(25 * BILLION // 10, (25 * BILLION // 10,))), "declare"),
    "10 GB tensor": (archive(tensor_pickle(1, (25 * BILLION // 10,))), "9.31 GiB"),
    "10 GB tensor, legacy": (legacy(tensor_pickle(1, (25 * BILLION // 10,))), "9.31 GiB"),
    "10 GB by strides": (archive(tensor_pickle(1, (50_000, 50_000, 1), (0, 0, 0))), "9.31 GiB"),
    "10 GB raw, legacy": (legacy(tensor_pickle(), 10 * BILLION), "torch.load with weights_only=True refuses it"),
    "array with fields": (saved(lambda path: {"x": np.zeros(2, [("a", "f4")])}), "numpy.dtype in an unusual way"),
    "far offset": (archive(tensor_pickle(1, (1,), (1,), 10 * BILLION)), "over a storage of 4 bytes"),
    "negative stride": (archive(tensor_pickle(1, (1,), (-1,))), "no shape, stride or offset"),
    "endless shape": (archive(tensor_pickle(1, (2**60,))), "no shape, stride or offset"),
    "missing storage": (archive(tensor_pickle(), name="a/data/1"), "the file has 0 bytes of it"),
    # zip files
    "zip bomb": (archive(tensor_pickle(), b"\0" * 300_000_000, method=zipfile.ZIP_DEFLATED), "286 MiB"),
    "overlapping members": (overlapping_zip, "zip"),
    "path traversal": (archive(tensor_pickle(), name="../../etc/passwd"), "points outside the archive"),
    "absolute path": (archive(tensor_pickle(), name="/etc/passwd"), "points outside the archive"),
    "two folders": (_with_member("b/data/0"), "more than one folder"),
    "names that differ in case": (_with_member("a/DATA/0"), "the same name"),
    "zip comment": (lambda path: archive(tensor_pickle())(path) or _append_comment(path), "not at the end"),
    "not torch's zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "x"), "zip"),
    "half a zip": (lambda path: archive(tensor_pickle())(path) or path.write_bytes(path.read_bytes()[:80]), "zip"),
    "half a pickle": (archive(tensor_pickle()[:-20]), "cannot be understood"),
    # safetensors
    "header lies": (tensors_file({"w": entry([1], 0, 4)}, b"\0" * 4, 2**60), "header declares"),
    "header longer than the file": (tensors_file({"w": entry([1], 0, 4)}, b"\0" * 4, 10_000), "header declares"),
    "10 GB in a header": (tensors_file({"w": entry([25 * BILLION // 10], 0, 10 * BILLION)}, b"\0" * 900), "9.31 GiB"),
    "overlapping offsets": (tensors_file({"v": entry([2], 0, 8), "w": entry([2], 4, 12)}, b"\0" * 12), "overlap"),
    "hole": (tensors_file({"v": entry([1], 0, 4), "w": entry([1], 8, 12)}, b"\0" * 12), "gaps"),
    "shape against offsets": (tensors_file({"w": entry([5], 0, 4)}, b"\0" * 4), "cannot be understood"),
    "negative shape": (tensors_file({"w": entry([-1], 0, 4)}, b"\0" * 4), "cannot be understood"),
    "deep header": (tensors_file(b'{"a":' + b"[" * 100_000), "cannot be understood"),
    "header is a list": (tensors_file(b"{}[]"), "cannot be understood"),
    # weights that are none
    "NaN": (saved(lambda path: {"weight": torch.tensor([1.0, float("nan")])}), "NaN or infinity"),
    "infinite": (lambda path: safetensors.torch.save_file({"w": torch.tensor(float("inf"))}, path), "NaN or infin"),
    "no tensors": (saved(lambda path: {"epoch": 3}), "no tensors"),
    "a list": (saved(lambda path: [torch.ones(2)]), "holds a list"),
    "a name that steers the terminal": (saved(lambda path: {"\x1b[2J": torch.tensor([float("nan")])}), r"\\x1b\[2J"),
    # no files
    "random bytes": (raw(bytes(range(256)) * 4), "format is unknown"),
    "text": (raw(b"#!/bin/sh\nrm -rf /\n"), "format is unknown"),
    "empty": (raw(b""), "is empty"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "FIFO": (lambda path: os.mkfifo(path), "is a FIFO"),
    "socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "is a socket"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "cannot be read"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
}  # fmt: skip


def _append_comment(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2:] = struct.pack("<H", 5)
    path.write_bytes(bytes(content) + b"hello")


@pytest.fixture(scope="module")
def folder() -> Any:
    """All of them, each in a short path (a socket's name is limited)."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for number, (build, _) in enumerate(HOSTILE.values()):
            build(Path(name) / f"{number}.pt")
        yield Path(name)


@pytest.mark.parametrize(("number", "what"), list(enumerate(HOSTILE)), ids=list(HOSTILE))
def test_a_hostile_file_is_refused_with_one_sentence(number, what, folder) -> None:
    path = folder / f"{number}.pt"
    with pytest.raises(Refused, match=HOSTILE[what][1]) as caught:
        read_state_dict(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 600
    assert not (folder / FLAG).exists()


READ_ALL = """
import resource, sys, torch
from pathlib import Path
from backdoor_bench.suspect.container import Refused
from backdoor_bench.suspect.inspection import inspect
from backdoor_bench.suspect.read import read_state_dict
torch.load  # the environment's wish is heeded by default, and must not be here
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_state_dict(path)
        print("READ", path.name)
    except Refused:
        print("refused", path.name)
    assert inspect(path).refused is not None
"""


def test_nothing_runs_and_memory_stays_bounded_whatever_the_environment_says(folder) -> None:
    """All of them within 700 MiB, where torch's own default would unpickle anything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("refused") == len(HOSTILE)
    assert "READ" not in done.stdout
    assert not (folder / FLAG).exists()


def test_the_malicious_pickles_here_would_work(tmp_path) -> None:
    """The flag of these tests is one that unpickling without care does raise."""
    path = tmp_path / "x.pt"
    HOSTILE["system"][0](path)
    torch.load(path, weights_only=False)
    assert (tmp_path / FLAG).exists()


def test_an_endless_pickle_is_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("backdoor_bench.suspect.pickles.LIMIT_OPCODES", 1000)
    archive(b"\x80\x02" + b"]0" * 1000 + b".")(tmp_path / "x.pt")
    with pytest.raises(Refused, match="more than 1,000 opcodes"):
        read_state_dict(tmp_path / "x.pt")


def test_a_file_over_the_limit_is_not_read(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1000)}, path)
    with pytest.raises(Refused, match=r"has 3.98 KiB, more than the 1 KiB that are read"):
        read_state_dict(path, limit_bytes=1024)
