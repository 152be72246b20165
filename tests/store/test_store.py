"""Victims are made once, also by several processes; what is damaged is set aside; no record is overwritten."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backdoor_bench.errors import StoreError
from backdoor_bench.store import Store, Stored, files

KEY = "0123456789abcdef0123"


def network(value: float = 1.0) -> Stored:
    tensors = {"weight": torch.full((2, 3), value), "count": torch.tensor(7)}
    return Stored({"network": tensors, "poison": {"altered": torch.arange(3)}}, {"seed": 0, "acc": 0.1})


def log_and_make(log: Path) -> Stored:
    """What a training would be: seconds of work that several processes should not do twice."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, b"made\n")
    os.close(handle)
    time.sleep(0.3)
    return network()


def ask(root: Path, log: Path, answers: multiprocessing.Queue) -> None:
    stored, made = Store(root).obtain("victims", KEY, lambda: log_and_make(log))
    answers.put((made, float(stored.tensors["network"]["weight"].sum())))


def hold(root: Path, holding: multiprocessing.Event) -> None:
    with Store(root).claim(f"victims-{KEY}"):
        holding.set()
        time.sleep(60)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(store: Store) -> Path:
    """Where the victim lies, saved."""
    store.save("victims", KEY, network())
    return store.root / "victims" / KEY


def never() -> Stored:
    raise AssertionError("it should have been found")


def test_what_is_saved_comes_back(store: Store) -> None:
    saved, made = store.obtain("victims", KEY, network)
    assert made
    found, made = store.obtain("victims", KEY, never)
    assert not made
    assert found.manifest == saved.manifest
    assert found.manifest["key"] == KEY
    assert set(found.tensors) == {"network", "poison"}
    assert torch.equal(found.tensors["network"]["weight"], torch.ones(2, 3))
    assert found.tensors["network"]["count"].dtype == torch.int64


def test_a_store_holds_no_pickle_and_is_readable_by_whom_its_folder_is(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "network.safetensors",
        "poison.safetensors",
    ]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_odd_tensors_come_back(store: Store) -> None:
    """Channels last, a view, two names for the same memory, none at all."""
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"image": image, "row": image[1, :, 2], "tied": image, "grad": torch.ones(2, requires_grad=True)}
    store.save("victims", KEY, Stored({"network": tensors, "trigger": {}}, {}))
    found = store.load("victims", KEY)
    assert found is not None
    assert all(torch.equal(found.tensors["network"][name], tensor) for name, tensor in tensors.items())
    assert found.tensors["trigger"] == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "network.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "network.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"key": '),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: os.truncate(folder / "poison.safetensors", 20),
        lambda folder: rewrite(folder, key="another"),
        lambda folder: rewrite(folder, files=["network.safetensors"]),
        lambda folder: rewrite(folder, files={"../secret": "0"}),
    ],
    ids=["overwritten", "file gone", "half a manifest", "no manifest", "truncated", "another's", "a list", "elsewhere"],
)
def test_a_damaged_victim_is_set_aside_and_made_again(
    store: Store, folder: Path, capsys, damage: Callable[[Path], object]
) -> None:
    damage(folder)
    _, made = store.obtain("victims", KEY, network)
    assert made
    assert f"victims {KEY} in the store is damaged" in capsys.readouterr().err
    assert (folder.parent / f"{KEY}.damaged-1").is_dir()
    assert not store.obtain("victims", KEY, never)[1]


def rewrite(folder: Path, **changes: object) -> None:
    """A manifest with other contents and a seal that fits."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    (folder / "manifest.json").write_text(json.dumps(files.seal(manifest)))


def test_damage_that_cannot_be_set_aside_is_said(store: Store, folder: Path, capsys, monkeypatch) -> None:
    (folder / "network.safetensors").write_bytes(b"x")

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    assert store.load("victims", KEY) is None
    assert "left where it is (Read-only file system)" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", ".", "..", "../victims", "PRECIOUS", f"{KEY}/..", f"{KEY}.damaged-1"])
def test_a_key_is_never_a_path(store: Store, folder: Path, tmp_path: Path, key: str) -> None:
    """It may come from a manifest, and what it names would be set aside as damaged, so only paths of our own here."""
    precious = tmp_path / "precious"
    precious.mkdir()
    with pytest.raises(StoreError, match="is no key"):
        store.load("victims", key.replace("PRECIOUS", str(precious)))
    assert folder.is_dir()
    assert precious.is_dir()


def test_a_key_that_is_not_there(store: Store) -> None:
    assert store.load("victims", KEY) is None


@pytest.mark.parametrize("file", ["network.safetensors", "manifest.json"])
def test_a_full_disk_leaves_no_half_victim(store: Store, monkeypatch, file: str) -> None:
    flush = files._flush

    def full(path: Path) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.obtain("victims", KEY, network)
    assert not (store.root / "victims" / KEY).exists()
    assert not list((store.root / "tmp").iterdir())
    monkeypatch.undo()
    assert store.obtain("victims", KEY, network)[1]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to the store .*store_dir=PATH"):
        Store(tmp_path / "file" / "store").obtain("victims", KEY, never)


def test_a_failed_training_leaves_nothing_and_frees_the_lock(store: Store) -> None:
    def fail() -> Stored:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.obtain("victims", KEY, fail)
    assert store.obtain("victims", KEY, network)[1]


def test_what_is_replaced_stays_until_the_new_one_is_whole(store: Store, folder: Path, monkeypatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.replace("victims", KEY, network(3.0))
    found = store.load("victims", KEY)
    assert found is not None
    assert found.tensors["network"]["weight"][0, 0] == 1
    assert [path.name for path in folder.parent.iterdir()] == [KEY]
    assert not list((store.root / "tmp").iterdir())


def test_replacing(store: Store, folder: Path) -> None:
    store.replace("victims", KEY, network(2.0))
    found = store.load("victims", KEY)
    assert found is not None
    assert found.tensors["network"]["weight"][0, 0] == 2
    assert [path.name for path in folder.parent.iterdir()] == [KEY]
    assert not list((store.root / "tmp").iterdir())


def test_four_processes_make_a_victim_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers, log = spawn.Queue(), tmp_path / "log"
    processes = [spawn.Process(target=ask, args=(tmp_path / "store", log, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    given = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"
    assert sorted(made for made, _ in given) == [False, False, False, True]
    assert {total for _, total in given} == {6.0}


def test_a_killed_process_leaves_no_lock(store: Store, capsys) -> None:
    spawn = multiprocessing.get_context("spawn")
    holding = spawn.Event()
    process = spawn.Process(target=hold, args=(store.root, holding))
    process.start()
    assert holding.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    started = time.monotonic()
    assert store.obtain("victims", KEY, network)[1]
    assert time.monotonic() - started < 5
    assert "waiting" not in capsys.readouterr().err


def test_waiting_is_said(store: Store, capsys, monkeypatch) -> None:
    """The lock of another process is given back as soon as this one says that it waits."""
    from backdoor_bench.store import base

    other = base.Lock(store.root / "locks" / "run-x.lock")
    (store.root / "locks").mkdir(parents=True)
    other.acquire()
    say = base.progress.say
    monkeypatch.setattr(base.progress, "say", lambda message: (say(message), other.release()))
    with store.claim("run-x"):
        pass
    assert capsys.readouterr().err == "waiting for another process that works on run-x\n"


# -- records ---------------------------------------------------------------------------------------------------------


def test_attempts_are_numbered_and_never_overwritten(store: Store) -> None:
    paths = [store.add_record("k", {"status": "ok", "n": n}) for n in range(3)]
    assert [path.name for path in paths] == ["0001.json", "0002.json", "0003.json"]
    assert [record["n"] for record in store.attempts("k")] == [0, 1, 2]
    assert store.record("k")["n"] == 2


def test_the_latest_ok_counts_and_failed_never_is_done(store: Store) -> None:
    assert store.record("k") is None
    store.add_record("k", {"status": "failed", "n": 0})
    assert store.record("k") is None
    store.add_record("k", {"status": "ok", "n": 1})
    store.add_record("k", {"status": "failed", "n": 2})
    assert store.record("k")["n"] == 1
    store.add_record("other", {"status": "failed", "n": 3})
    store.add_record("other", {"status": "failed", "n": 4})
    assert [record["n"] for record in store.records()] == [1, 4]


def test_a_truncated_record_is_set_aside_and_its_number_not_used_again(store: Store, capsys) -> None:
    store.add_record("k", {"status": "ok", "n": 1})
    path = store.add_record("k", {"status": "ok", "n": 2})
    os.truncate(path, path.stat().st_size // 2)
    assert store.record("k")["n"] == 1
    assert "record k/0002.json is damaged" in capsys.readouterr().err
    assert path.with_name("0002.json.damaged-1").exists()
    assert store.add_record("k", {"status": "ok", "n": 3}).name == "0003.json"
    assert [record["n"] for record in store.attempts("k")] == [1, 3]


def test_a_half_written_record_is_no_record(store: Store) -> None:
    store.add_record("k", {"status": "ok", "n": 1})
    (store.root / "runs" / "k" / ".0002.json.123.tmp").write_text('{"status": "ok"')
    assert [record["n"] for record in store.attempts("k")] == [1]
    assert store.add_record("k", {"status": "ok"}).name == "0002.json"


def test_an_empty_store_has_no_records(store: Store) -> None:
    assert list(store.records()) == []


def ask_for_all(root: Path, log: Path, order: list[int]) -> None:
    """One of many processes that need the same victims, each in an order of its own."""
    for number in order:
        Store(root).obtain("victims", f"victim{number}", lambda: log_and_make(log))


def test_eight_processes_that_need_the_same_four_victims_train_four(tmp_path: Path) -> None:
    fork, log = multiprocessing.get_context("fork"), tmp_path / "log"
    orders = [[(first + step) % 4 for step in range(4)] for first in range(4)] * 2
    processes = [fork.Process(target=ask_for_all, args=(tmp_path / "store", log, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "made\n" * 4
    assert len(list((tmp_path / "store" / "victims").iterdir())) == 4
    assert not list((tmp_path / "store" / "locks").iterdir())
