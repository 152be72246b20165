"""A store that is looked after: what is damaged is found, what is needed stays, what nobody needs can go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from backdoor_bench.errors import BusyError, StoreError
from backdoor_bench.store import RECORD_FORMAT, Store, Stored, files, upkeep
from backdoor_bench.store.__main__ import main

NETWORK = Stored({"network": {"weight": torch.ones(3)}}, {"seed": 0})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two victims; ``used`` by an ok run that kept its purified network, ``tried`` by a failed one."""
    made = Store(tmp_path / "store")
    for victim, run, status in (("used", "good", "ok"), ("tried", "bad", "failed")):
        made.save("victims", victim, NETWORK)
        made.add_record(run, {"format": RECORD_FORMAT, "key": run, "victim": victim, "status": status})
    made.save("purified", "good", NETWORK)
    return made


def names(store: Store, findings) -> dict[str, str]:
    return {str(finding.path.relative_to(store.root)): finding.kind for finding in findings}


def test_a_store_that_is_in_order(store: Store, capsys) -> None:
    assert list(upkeep.verify(store)) == []
    assert upkeep.garbage(store) == []
    assert main(["verify", str(store.root)]) == 0
    assert main(["gc", str(store.root), "--yes"]) == 0
    said = capsys.readouterr().err
    assert "everything is as it was written" in said
    assert "nothing to remove" in said


def test_damage_is_found_and_nothing_changed(store: Store, capsys) -> None:
    (store.root / "victims" / "used" / "network.safetensors").write_bytes(b"x")
    (store.root / "runs" / "bad" / "0001.json").write_text("{")
    before = sorted(store.root.rglob("*"))
    assert names(store, upkeep.verify(store)) == {
        "runs/bad/0001.json": "damaged",
        "victims/used": "damaged",
        "victims/tried": "useless",
    }
    assert main(["verify", str(store.root)]) == 1
    assert "network.safetensors does not match its checksum" in capsys.readouterr().out
    assert sorted(store.root.rglob("*")) == before


def test_orphans_are_found(store: Store) -> None:
    store.save("victims", "lonely", NETWORK)
    store.save("purified", "bad", NETWORK)
    store.add_record("homeless", {"key": "homeless", "victim": "gone", "status": "ok"})
    store.add_record("bare", {"key": "bare", "victim": "used", "status": "ok", "purified": "/elsewhere/purified/bare"})
    (store.root / "runs" / "empty").mkdir()
    assert names(store, upkeep.verify(store)) == {
        "runs/homeless/0001.json": "lacking",
        "runs/bare/0001.json": "lacking",
        "victims/lonely": "useless",
        "purified/bad": "useless",
        "runs/empty": "useless",
    }


def test_a_clean_network_stays_while_a_victim_that_a_record_names_was_made_with_it(store: Store) -> None:
    for key in ("shared", "left"):
        store.save("clean", key, NETWORK)
    store.save("victims", "poisoned", Stored(NETWORK.tensors, {"clean": ["shared"]}))
    assert names(store, upkeep.garbage(store)) == {
        "victims/poisoned": "useless", "clean/shared": "useless", "clean/left": "useless",
    }  # fmt: skip
    store.add_record("again", {"format": RECORD_FORMAT, "key": "again", "victim": "poisoned", "status": "ok"})
    assert names(store, upkeep.verify(store)) == names(store, upkeep.garbage(store)) == {"clean/left": "useless"}
    assert len(upkeep.remove(store, upkeep.garbage(store))) == 1
    assert [folder.name for folder in (store.root / "clean").iterdir()] == ["shared"]


def test_gc_shows_first_and_removes_only_what_no_record_needs(store: Store, capsys) -> None:
    store.save("victims", "lonely", NETWORK)
    store.save("purified", "bad", NETWORK)
    (store.root / "runs" / "empty").mkdir()
    (store.root / "victims" / "used.damaged-1").mkdir()
    half = store.root / "tmp" / f"{7:032x}"
    half.mkdir()
    (store.root / "locks").mkdir()
    (store.root / "locks" / "run-old.lock").touch()
    useless = {
        "victims/lonely",
        "victims/used.damaged-1",
        "purified/bad",
        "runs/empty",
        f"tmp/{half.name}",
        "locks/run-old.lock",
    }
    assert set(names(store, upkeep.garbage(store))) == useless
    assert main(["gc", str(store.root)]) == 0
    assert all((store.root / path).exists() for path in useless)
    assert "6 things" in capsys.readouterr().err
    assert main(["gc", str(store.root), "--yes"]) == 0
    assert "6 of 6 things removed" in capsys.readouterr().err
    assert not any((store.root / path).exists() for path in useless)
    assert list(upkeep.verify(store)) == []
    assert {path.name for path in (store.root / "victims").iterdir()} == {"used", "tried"}
    assert not list((store.root / "tmp").iterdir())


def test_gc_waits_for_runs_and_spares_what_is_claimed(store: Store) -> None:
    store.save("victims", "lonely", NETWORK)
    with store.claim("run-x"), pytest.raises(BusyError, match=r"a run is going on in .*x"):
        upkeep.garbage(store)
    found = upkeep.garbage(store)
    with store.claim("victims-lonely"):
        assert upkeep.remove(store, found) == []
    assert (store.root / "victims" / "lonely").is_dir()
    assert upkeep.remove(store, found) == found


def test_gc_says_the_size_of_what_it_removed(store: Store, capsys) -> None:
    for name, content in (("lonely", 3), ("busy", 2000)):
        folder = store.root / "victims" / f"{name}.damaged-1"
        folder.mkdir()
        (folder / "part").write_bytes(b"x" * content)
    store.save("victims", "claimed", NETWORK)
    assert main(["gc", str(store.root)]) == 0
    assert "3 things, 2.3 kB; remove with --yes" in capsys.readouterr().err
    with store.claim("victims-claimed"), store.claim("victims-busy.damaged-1"):
        assert main(["gc", str(store.root), "--yes"]) == 0
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "1 of 3 things removed, 3 bytes; a process is at work on the rest"
    assert main(["gc", str(store.root), "--yes"]) == 0
    assert "2 of 2 things removed, 2.3 kB" in capsys.readouterr().err


def test_gc_removes_nothing_for_want_of_a_record_that_it_cannot_read(store: Store) -> None:
    store.save("victims", "lonely", NETWORK)
    os.truncate(store.root / "runs" / "bad" / "0001.json", 10)
    with pytest.raises(StoreError, match="what it needs is not known"):
        upkeep.garbage(store)


def test_what_a_living_writer_has_half_written_stays(store: Store) -> None:
    scratch = store.root / "tmp"
    with files.whole(store.root / "victims" / "new", scratch) as folder:
        (folder / "part").write_text("half")
        assert files.leftovers(scratch, remove=True) == []
        assert upkeep.garbage(store) == []
        assert (folder / "part").exists()
    dead = scratch / f"{1:032x}"
    dead.write_text("half")
    dead.with_suffix(".lock").touch()
    assert files.leftovers(scratch) == [dead]
    assert files.leftovers(scratch, remove=True) == [dead]
    assert not list(scratch.iterdir())


def test_what_the_store_did_not_name_is_never_removed(store: Store) -> None:
    """A folder that was taken for the store's by mistake holds other people's files."""
    own = [store.root / "tmp" / name for name in ("notes.txt", "results", "0123456789abcdef", ".hidden")]
    for path in own:
        path.write_text("precious")
    assert files.leftovers(store.root / "tmp", remove=True) == []
    assert upkeep.garbage(store) == []
    assert all(path.read_text() == "precious" for path in own)


def test_a_newer_versions_record_is_not_guessed_at(store: Store, capsys) -> None:
    path = store.add_record("future", {"format": RECORD_FORMAT + 1, "key": "future", "victim": "used", "status": "ok"})
    message = rf"record future/0001.json has format {RECORD_FORMAT + 1}, and this version reads up to {RECORD_FORMAT}"
    with pytest.raises(StoreError, match=message):
        store.record("future")
    assert path.exists()
    assert main(["verify", str(store.root)]) == 1
    assert "a newer backdoor_bench wrote it" in capsys.readouterr().out


def test_a_store_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert main(["gc", str(tmp_path / "nowhere")]) == 1
    assert "no store at" in capsys.readouterr().err


def test_compacting_leaves_one_file_that_reports_read(tmp_path: Path, capsys) -> None:
    store = Store(tmp_path / "empty")
    store.root.mkdir()
    assert main(["compact", str(store.root)]) == 1
    assert "no records in" in capsys.readouterr().err
