"""What a record says at the end is what the purified network does, also where measuring or keeping was skipped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from backdoor_bench import experiment
from backdoor_bench.bench import Bench
from backdoor_bench.errors import UnwritableError
from backdoor_bench.store import Store
from backdoor_bench.store.lock import Lock

SKIP_LAST = "+defense.stages.last={_target_: backdoor_bench.stage.skip.Skip}"


def test_the_end_is_measured_also_if_the_last_stage_changed_nothing(
    compose: Callable[..., dict[str, Any]], tmp_path
) -> None:
    bench = Bench(Store(tmp_path))
    often, once = (
        experiment.run(
            compose("+attack=badnet", "+defense=ft", SKIP_LAST, "force=true", f"measure_stages={each}"), bench
        )
        for each in ("true", "false")
    )
    assert often.record["acc"] != often.record["before"]["acc"]
    for name in ("acc", "asr", "ra", "der"):
        assert once.record[name] == often.record[name]
    assert [stage["changed"] for stage in once.record["stages"]] == [True, False]
    assert "acc" not in once.record["stages"][0]


def test_a_run_is_found_in_a_store_that_may_only_be_read(
    compose: Callable[..., dict[str, Any]], tmp_path, monkeypatch
) -> None:
    bench = Bench(Store(tmp_path))
    first = experiment.run(compose("+attack=badnet"), bench)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Lock, "acquire", refuse)
    again = experiment.run(compose("+attack=badnet"), bench)
    assert (again.found, again.path) == (True, first.path)
    with pytest.raises(UnwritableError, match="Read-only file system; choose another with store_dir=PATH"):
        experiment.run(compose("+attack=badnet", "seed=1"), bench)


def test_a_run_is_done_again_if_its_purified_network_was_not_kept(
    compose: Callable[..., dict[str, Any]], tmp_path
) -> None:
    bench = Bench(Store(tmp_path))
    config = compose("+attack=badnet", "+defense=ft")
    first = experiment.run(config, bench)
    again = experiment.run(config, bench)
    assert (again.found, again.path) == (True, first.path)
    kept = experiment.run({**config, "save_purified": True}, bench)
    assert not kept.found
    assert kept.record["acc"] == first.record["acc"]
    assert bench.store.load("purified", kept.record["key"]) is not None
    again = experiment.run({**config, "save_purified": True}, bench)
    assert (again.found, again.path) == (True, kept.path)
    assert len(bench.store.attempts(kept.record["key"])) == 2
