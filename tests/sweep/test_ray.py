"""The engine on Ray: warm workers, killed workers, nothing lost and nothing done twice. One Ray for all tests here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from backdoor_bench.errors import BenchError, ConfigError, DataError
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job, Report, Result
from tests.sweep.sleeping import Sleeping

ray = pytest.importorskip("ray")

from backdoor_bench.sweep import ray_pool  # noqa: E402
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
    assert {fact["nice"] for fact in facts} == {os.nice(0)}, "the priority of whoever started the sweep"
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


class Moody(Sleeping):
    """One start succeeds; then as many fail as the file ``moods`` has letters, and its jobs wait for that."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._moods = folder / "moods"
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            if left := self._moods.read_text():
                self._moods.write_text(left[1:])
                raise OSError("the machine has a bad minute") from None

    def __call__(self, job: Job) -> Report:
        while self._moods.read_text():
            time.sleep(0.1)
        return super().__call__(job)


@pytest.mark.usefixtures("_ray")
def test_workers_that_did_not_start_are_tried_again_when_the_last_one_has_died(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ray_pool, "SECONDS_UNTIL_NEXT_START", 2.0)
    (tmp_path / "moods").write_text("x" * ray_pool.FAILED_STARTS)
    found: dict[str, Result] = {}
    engine.run(
        [job("dies once", "v", kills=1)], tmp_path, workers=2, make_work=partial(Moody, tmp_path),
        on_result=lambda job, result: found.update({job.key: result}),
    )  # fmt: skip
    assert (found["dies once"].status, found["dies once"].attempts) == ("ok", 2)


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job
from tests.sweep.sleeping import Sleeping
folder = Path(sys.argv[1])
jobs = [Job(str(n), f"v{n % 2}", {"device": "cpu", "seconds": 1.0}, f"job {n}") for n in range(20)]
sys.exit(engine.run(jobs, folder, workers=2, make_work=partial(Sleeping, folder)).exit_status)
"""


def raylet(driver: int) -> int:
    """The process by which Ray looks after this machine, as the driver's child."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == driver and b"raylet/raylet" in path.with_name("cmdline").read_bytes():
                return int(path.parent.name)
    raise AssertionError("the driver has no raylet")


def test_a_ray_that_dies_on_this_machine_is_started_again(tmp_path: Path) -> None:
    """Killed for want of memory, or given up by its own head on a machine that is too busy to answer."""
    environment = {**os.environ, "RAY_health_check_failure_threshold": "2"}  # in seconds, not half a minute
    words = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(words, stdout=said, stderr=said, env=environment, cwd=Path(__file__).parents[2])
    try:
        for _ in range(600):
            if (tmp_path / "log").exists():
                break
            time.sleep(0.2)
        os.kill(raylet(driver.pid), signal.SIGKILL)
        assert driver.wait(200) == 0, (tmp_path / "said").read_text()
    finally:
        driver.kill()
        driver.wait()
    assert "Ray has died on this machine" in (tmp_path / "said").read_text()
    assert set(done(tmp_path)) == {str(n) for n in range(20)}


def test_a_ray_that_does_not_start_here_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    """On a machine that is busy beyond measure Ray gives up on itself after half a minute, with a bare Exception."""

    def slow(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(BenchError, match=r"Ray did not start .*timed out during startup.*hydra\.launcher\.workers=1"):
        engine.run([job("1", "v")], tmp_path, workers=2, make_work=partial(Sleeping, tmp_path))


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9"])
def test_a_dead_address_says_what_to_start(address: str, tmp_path: Path, monkeypatch) -> None:
    def dead(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    if address == "auto":  # the other is knocked at, which needs no Ray
        monkeypatch.setattr(ray, "init", dead)
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at address={address} .*'ray start --head'"):
        engine.run([job("1", "v")], tmp_path, address=address, make_work=partial(Sleeping, tmp_path))
