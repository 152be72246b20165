"""A command whose output nobody reads any more says nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backdoor_bench import pipe

ROOT = Path(pipe.__file__).parent
COMMANDS = [path for path in ROOT.rglob("*.py") if '\nif __name__ == "__main__":' in path.read_text()]


def started(folder: Path, *arguments: str, unbuffered: bool) -> subprocess.CompletedProcess[str]:
    """A Python process whose standard output has no reader from the beginning."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=write, stderr=subprocess.PIPE, text=True,
            timeout=300,
        )  # fmt: skip
    finally:
        os.close(write)


@pytest.mark.parametrize(
    "words",
    ["backdoor_bench --help", "backdoor_bench --cfg job", "backdoor_bench.report --table list",
     "backdoor_bench.records --help"],
)  # fmt: skip
@pytest.mark.parametrize("unbuffered", [False, True])
def test_without_a_reader_a_command_ends_with_the_status_of_a_broken_pipe(
    tmp_path: Path, words: str, unbuffered: bool
) -> None:
    """Printed by Hydra in two ways, by us and by argparse."""
    done = started(tmp_path, "-m", *words.split(), unbuffered=unbuffered)
    assert (done.stderr, done.returncode) == ("", 141)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_does(path: Path) -> None:
    assert "\n@pipe.quiet\ndef main(" in path.read_text()


@pytest.mark.parametrize("unbuffered", [False, True])
def test_so_does_what_rich_prints(tmp_path: Path, unbuffered: bool) -> None:
    script = (
        "import sys; from rich.console import Console; from backdoor_bench import pipe; "
        "sys.exit(pipe.quiet(lambda: Console().print('one line') or 0)())"
    )
    done = started(tmp_path, "-c", script, unbuffered=unbuffered)
    assert (done.stderr, done.returncode) == ("", 141)


def test_the_broken_pipe_of_something_else_stays_an_error() -> None:
    @pipe.quiet
    def main() -> int:
        read, write = os.pipe()
        os.close(read)
        try:
            return os.write(write, b"x")
        finally:
            os.close(write)

    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(BrokenPipeError):
        main()
    assert signal.getsignal(signal.SIGPIPE) == before
