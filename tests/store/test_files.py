"""What has its final name is whole; what is damaged is noticed; a full disk is said."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.errors import StoreError
from backdoor_bench.store import files


def broken(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace"), (Path, "open")])
def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch, owner: Any, call: str) -> None:
    files.write_json(tmp_path / "old.json", {"a": 1})
    monkeypatch.setattr(owner, call, broken(errno.ENOSPC))
    for name in ("new.json", "old.json"):
        with pytest.raises(StoreError, match=rf"cannot write .*{name}: the disk is full; .* Free some space"):
            files.write_json(tmp_path / name, {"a": 2})
    monkeypatch.undo()
    assert everything(tmp_path) == ["old.json"]
    assert files.read_json(tmp_path / "old.json")["a"] == 1


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "rename"), (Path, "write_text")])
def test_a_full_disk_leaves_no_half_folder(tmp_path: Path, monkeypatch, owner: Any, call: str) -> None:
    monkeypatch.setattr(owner, call, broken(errno.ENOSPC))
    target = tmp_path / "victims" / "k"

    def write() -> None:
        with files.whole(target, tmp_path / "tmp") as folder:
            (folder / "manifest.json").write_text("{}")

    with pytest.raises(StoreError, match="the disk is full; no half file was left"):
        write()
    assert not target.exists()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        # What safetensors raises has no errno.
        (OSError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; .* Check the permissions"),
        (OSError("odd"), "odd"),
    ],
)
def test_what_a_failed_write_says(error: OSError, words: str) -> None:
    with pytest.raises(StoreError, match=f"cannot write store/x: {words}.*store_dir=PATH"):
        raise files.cannot_write(Path("store/x"), error)


def test_a_folder_that_is_there_by_then_stays(tmp_path: Path) -> None:
    target = tmp_path / "victims" / "k"
    for text in ("first", "second"):
        with files.whole(target, tmp_path / "tmp") as folder:
            (folder / "a").write_text(text)
    assert (target / "a").read_text() == "first"
    assert not list((tmp_path / "tmp").iterdir())


def test_an_error_in_the_block_is_not_the_disks(tmp_path: Path) -> None:
    def fail() -> None:
        with files.whole(tmp_path / "k", tmp_path / "tmp") as folder:
            (folder / "a").write_text("half")
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail()
    assert everything(tmp_path) == ["tmp"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": 1, "a": [0.1, None, "é"], "c": {"d": True, "a": 1e-5}}
    files.write_json(tmp_path / "deep" / "er" / "r.json", value)
    found = files.read_json(tmp_path / "deep" / "er" / "r.json")
    assert list(found) == ["b", "a", "c", "sha256"]
    assert {name: found[name] for name in value} == value


def test_what_json_has_no_word_for_is_sealed_as_it_comes_back(tmp_path: Path) -> None:
    """Keys that are numbers sort otherwise as text; a number that is none is null, never NaN."""
    files.write_json(tmp_path / "r.json", {"layers": {10: (1, 2), 2: float("nan")}, "x": [float("inf")]})
    found = files.read_json(tmp_path / "r.json")
    assert found["layers"] == {"10": [1, 2], "2": None}
    assert found["x"] == [None]


def damage(text: str, how: str) -> str:
    if how == "truncated":
        return text[: len(text) // 2]
    if how == "empty":
        return ""
    if how == "a list":
        return "[1, 2]"
    value = json.loads(text)
    if how == "a value":
        value["acc"] = 0.99
    elif how == "a new value":
        value["more"] = 1
    else:
        del value["sha256"]
    return json.dumps(value)


@pytest.mark.parametrize("how", ["truncated", "empty", "a list", "a value", "a new value", "no seal"])
def test_a_damaged_file_is_noticed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "r.json"
    files.write_json(path, {"acc": 0.5, "status": "ok"})
    path.write_text(damage(path.read_text(), how))
    with pytest.raises(ValueError, match=r"checksum|Expecting|Unterminated"):
        files.read_json(path)


def test_bytes_that_are_no_text_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="utf-8"):
        files.read_json(tmp_path / "r.json")


def test_sealing_again_changes_nothing() -> None:
    sealed = files.seal({"b": 1, "a": 2})
    assert files.seal(sealed) == sealed
    assert sealed["sha256"] == files.seal({"a": 2, "b": 1})["sha256"]


def test_setting_aside_loses_nothing(tmp_path: Path) -> None:
    names = []
    for text in ("first", "second"):
        (tmp_path / "r.json").write_text(text)
        names.append(files.set_aside(tmp_path / "r.json").name)
    assert names == ["r.json.damaged-1", "r.json.damaged-2"]
    assert [(tmp_path / name).read_text() for name in names] == ["first", "second"]
