"""The engine on Ray: warm workers, killed workers, nothing lost and nothing done twice. One Ray for all tests here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from backdoor_bench.errors import BenchError, ConfigError, DataError
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job, Result
from tests.sweep.sleeping import Sleeping

ray = pytest.importorskip("ray")

from backdoor_bench.sweep.ray_pool import RayPool  # noqa: E402
from benchmarks.sweep import Prepared  # noqa: E402

pytestmark = pytest.mark.slow  # each session of Ray takes seconds to start and to stop


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """A Ray of two logical cores that the engine finds running, and so leaves running."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=80 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


def run(folder: Path, *jobs: Job, **options: object) -> tuple[engine.Summary, dict[str, Result]]:
    found: dict[str, Result] = {}
    summary = engine.run(
        jobs, folder, workers=2, make_work=partial(Sleeping, folder),
        on_result=lambda job, result: found.update({job.key: result}), **options,
    )  # fmt: skip
    assert ray.is_initialized()
    return summary, found


def job(key: str, victim: str, seconds: float = 0.05, kills: int = 0, needs: str | None = None) -> Job:
    return Job(key, victim, {"device": "cpu", "seconds": seconds, "kills": kills}, key, needs)


def done(folder: Path) -> list[str]:
    return sorted((folder / "log").read_text().splitlines())


@pytest.mark.usefixtures("_ray")
def test_killed_workers_lose_nothing_repeat_nothing_and_are_replaced(tmp_path: Path) -> None:
    jobs = [job(f"{victim}{n}", victim, needs=f"{victim}0" if n else None) for n in range(5) for victim in "vw"]
    jobs += [job("dies once", "x", kills=1), job("kills always", "y", kills=99)]
    jobs += [job("in vain", "y", needs="kills always")]
    summary, found = run(tmp_path, *jobs)
    assert summary.counts == {"ok": 11, "found": 0, "failed": 1, "skipped": 1}
    assert (found["dies once"].status, found["dies once"].attempts) == ("ok", 2)
    assert found["kills always"].status == "failed"
    assert "its worker was lost 3 times" in found["kills always"].reason
    assert found["kills always"].reason.endswith("its process died: killed, or the machine is short of memory")
    assert "its victim failed (kills always)" in found["in vain"].reason
    assert done(tmp_path) == sorted(one.key for one in jobs if one.key not in ("kills always", "in vain"))
    assert (tmp_path / "given_up").read_text() == "kills always\n"


@pytest.mark.usefixtures("_ray")
def test_workers_stay_warm_with_their_victim_and_share_the_cores(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = Prepared(RayPool(partial(Sleeping, tmp_path), 2), 2)  # however long one of them takes to start
    _, found = run(tmp_path, *(job(f"{victim}{n}", victim, 0.1) for n in range(4) for victim in "vw"), pool=both)
    facts = [result.record for result in found.values()]
    assert len({fact["pid"] for fact in facts}) == 2
    assert os.getpid() not in {fact["pid"] for fact in facts}
    assert {fact["threads"] for fact in facts} == {"1"}
    assert {fact["folder"] for fact in facts} == {str(tmp_path)}, "relative paths mean what they mean here"
    order = {pid: [key[0] for key, result in found.items() if result.record["pid"] == pid] for pid in
             {fact["pid"] for fact in facts}}  # fmt: skip
    assert {victims[0] for victims in order.values()} == {"v", "w"}, "each has one to itself"
    for victims in order.values():
        assert len(list(groupby(victims))) == len(set(victims)), "the other's only when all of its own are done"


def broken() -> Sleeping:
    raise DataError("no data set on this machine")


@pytest.mark.usefixtures("_ray")
def test_workers_that_cannot_start_end_the_sweep_with_their_reason(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no data set on this machine"):
        engine.run([job("1", "v")], tmp_path, workers=2, make_work=broken)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9"])
def test_a_dead_address_says_what_to_start(address: str, tmp_path: Path, monkeypatch) -> None:
    def dead(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    if address == "auto":  # the other is knocked at, which needs no Ray
        monkeypatch.setattr(ray, "init", dead)
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at address={address} .*'ray start --head'"):
        engine.run([job("1", "v")], tmp_path, address=address, make_work=partial(Sleeping, tmp_path))
