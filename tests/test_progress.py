"""A bar on a terminal, a line now and then elsewhere; never on stdout."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from backdoor_bench import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a person at a terminal gets."""
    written = io.StringIO()
    kind = {"TERM": "xterm"}  # whatever the tests themselves run in
    console = Console(file=written, force_terminal=True, width=100, highlight=False, _environ=kind)
    monkeypatch.setattr(progress, "console", console)
    return written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_work_says_nothing_where_there_is_no_terminal(capsys) -> None:
    with progress.track("train", 3) as advance:
        for _ in range(3):
            advance("loss 1.0")
    assert capsys.readouterr() == ("", "")


def test_long_work_says_a_line_every_ten_seconds(capsys, clock: list[float]) -> None:
    with progress.track("train", 5, "step") as advance:
        for seconds in (4.0, 11.0, 12.0, 20.0, 21.5):
            clock[0] = seconds
            advance("" if seconds > 15 else f"loss {seconds}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["train: step 2/5, 11 s loss 11.0", "train: step 5/5, 22 s"]


def test_a_terminal_shows_a_bar(screen: io.StringIO) -> None:
    with progress.track("train the victim", 2) as advance:
        advance("loss 0.5000")
        advance("loss 0.2500")
    shown = screen.getvalue()
    assert "train the victim" in shown
    assert "2/2" in shown
    assert "loss 0.2500" in shown


def test_bars_may_lie_inside_each_other(screen: io.StringIO) -> None:
    with progress.track("repeat", 1, "round") as outer:
        with progress.track("fit", 1) as inner:
            inner("")
        outer("")
    assert "repeat" in screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_errors_come_through(terminal: bool, request: pytest.FixtureRequest) -> None:
    if terminal:
        request.getfixturevalue("screen")
    with pytest.raises(ZeroDivisionError), progress.track("train", 2) as advance:
        advance(str(1 / 0))


def test_a_message_is_one_line_on_stderr_as_it_is(capsys) -> None:
    message = "cannot write [/tmp/x]: " + "long " * 40 + "[bold]end"
    progress.say(message)
    assert capsys.readouterr() == ("", message + "\n")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, highlight=False, _environ={"TERM": "dumb"})
    monkeypatch.setattr(progress, "console", console)
    with progress.track("train", 2) as advance:
        clock[0] = 11.0
        advance("loss 1")
    assert written.getvalue() == "train: epoch 1/2, 11 s loss 1\n"
