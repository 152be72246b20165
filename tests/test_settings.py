"""Options that no class takes are refused when a run is planned, with nothing trained."""

from __future__ import annotations

import re

import pytest

from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.store import Store


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["force=foo"], "force=foo: expected true or false"),
        (["download=flase"], "download=flase: expected true or false"),
        (["save_purified=1"], "save_purified=1: expected true or false"),
        (["trainer.channels_last=no_idea"], "trainer.channels_last=no_idea: expected true or false"),
        (["trainer.eval_batch_size=0"], "trainer.eval_batch_size=0: expected a whole number of at least 1"),
        (["+trainer.precison=32"], "unknown option of trainer 'precison'. Did you mean precision?"),
        (["~trainer.precision"], "trainer.precision is missing"),
        (["weak_attack_below=50"], "weak_attack_below=50: expected an ASR as a fraction in [0, 1]"),
        (["weak_attack_below=.nan"], "weak_attack_below=.nan: expected an ASR"),
        (["clean_from=foo"], "clean_from=foo: expected unpoisoned or all"),
        (["trust=mine"], "trust=mine: expected a list of packages, e.g. trust=[mine]"),
        (["data_dir="], "data_dir is empty; name a folder"),
        (["device=null"], "device=None: expected auto, cpu, cuda or cuda:N"),
        (["~attack", "++attack.size=3"], "attack.size: no attack is chosen; add +attack=NAME"),
        (["~defense", "++defense.epochs=3"], "defense.epochs: no defense is chosen; add +defense=NAME"),
        (["seed=99999999999999999999999"], "seed=99999999999999999999999: expected a whole number below 2^62"),
        (["seed=one"], "seed=one: expected a whole number of at least 0"),
        (["trigger=00000000000000000000"], "trigger= belongs to a file's network (victim=FILE); a trained one has its"),
        (["mean=[0,0,0]"], "mean= belongs to a file's network (victim=FILE); the data set's: dataset.mean="),
    ],
)
def test_one_sentence_says_what_was_expected(compose, tmp_path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "+defense=ft", *overrides))
    assert not (tmp_path / "store").exists()


def test_no_digit_of_a_seed_is_lost(compose, tmp_path) -> None:
    """9007199254740993 is the first whole number that is no float."""
    plan = Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "seed=9007199254740993"))
    assert plan.config["seed"] == 9007199254740993


def test_seeds_are_whole_numbers_afterwards(compose, tmp_path) -> None:
    plan = Bench(Store(tmp_path / "store")).plan(compose("+attack=badnet", "seed=5.0", "repetition=1.0"))
    assert (repr(plan.config["seed"]), repr(plan.config["repetition"])) == ("5", "1")
