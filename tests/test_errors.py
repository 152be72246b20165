"""What an unknown name is answered with."""

from __future__ import annotations

from backdoor_bench.errors import unknown


def test_where_there_is_nothing_to_choose_from_the_list_says_so() -> None:
    assert str(unknown("input of stage 'skip'", "mask", [])) == "unknown input of stage 'skip' 'mask'. Known: none."
