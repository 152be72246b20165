"""Who beats FP and FT: only like with like, only beyond the uncertainty, only the blind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backdoor_bench.report import frame, ranking
from tests.report.conftest import Write


def runs(scores: dict[str, float], victims: int = 6, repetitions: int = 3, noise: float = 0.01) -> pd.DataFrame:
    """Defenses with a mean ASR, RDR and ARR each, on the same victims."""
    draws = np.random.default_rng(0)
    rows = []
    for victim in range(victims):
        for repetition in range(repetitions):
            for name, score in scores.items():
                values = score + noise * draws.standard_normal(3)
                rows.append({"victim": f"v{victim}", "regime": "spc 10", "clean_from": "unpoisoned",
                             "repetition": repetition, "defense_label": name, "at_chance": False,
                             **dict(zip(ranking.CRITERIA, values, strict=True))})  # fmt: skip
    return pd.DataFrame(rows)


def duel(found: list[ranking.Duel], defense: str, baseline: str) -> ranking.Duel:
    return next(d for d in found if (d.defense, d.baseline) == (defense, baseline))


def test_wins_ties_and_losses() -> None:
    found = ranking.duels(runs({"fp": 0.5, "ft": 0.5, "good": 0.1, "same": 0.5, "bad": 0.9}))
    good, same, bad = (duel(found, name, "fp") for name in ("good", "same", "bad"))
    assert good.verdicts["asr"].difference == pytest.approx(-0.4, abs=0.02)
    assert {v.result for v in good.verdicts.values()} == {"win"}
    assert good.beats
    assert good.lower_medians
    assert (good.pairs, good.victims) == (18, 6)
    assert "win" not in {v.result for v in same.verdicts.values()} or not same.beats
    assert {v.result for v in bad.verdicts.values()} == {"loss"}
    assert not bad.beats


def test_better_on_two_of_three_does_not_beat() -> None:
    frame_ = runs({"fp": 0.5, "good": 0.1})
    frame_.loc[frame_.defense_label == "good", "arr"] += 0.8
    found = duel(ranking.duels(frame_), "good", "fp")
    assert [found.verdicts[c].result for c in ranking.CRITERIA] == ["win", "win", "loss"]
    assert not found.beats
    assert not found.lower_medians


def test_few_victims_decide_nothing() -> None:
    found = duel(ranking.duels(runs({"fp": 0.5, "good": 0.1}, victims=2)), "good", "fp")
    verdict = found.verdicts["asr"]
    assert verdict.result == "undecided"
    assert verdict.high < 0  # the interval is shown all the same
    single = duel(ranking.duels(runs({"fp": 0.5, "good": 0.1}, victims=1, repetitions=1)), "good", "fp").verdicts["asr"]
    assert single.result == "undecided"
    assert np.isnan(single.low)


def test_one_victim_with_many_repetitions_is_judged_by_its_pairs() -> None:
    one = runs({"fp": 0.5, "good": 0.1}, victims=1, repetitions=8)
    verdict = duel(ranking.duels(one), "good", "fp").verdicts["asr"]
    assert verdict.result == "win"
    assert (verdict.wins, verdict.ties, verdict.losses, verdict.undecided) == (1, 0, 0, 0)


def test_pairs_are_of_the_same_victim_regime_and_repetition() -> None:
    both = runs({"fp": 0.5, "good": 0.1})
    lonely = both[(both.defense_label == "fp") | (both.repetition == 0)]
    assert duel(ranking.duels(lonely), "good", "fp").pairs == 6
    elsewhere = both.assign(victim=both.victim.where(both.defense_label == "fp", both.victim + "x"))
    assert [d for d in ranking.duels(elsewhere) if d.defense == "good"] == []


def test_many_pairs_of_few_victims_are_no_many_victims() -> None:
    """Victims differ; their repetitions hardly: resampling pairs would make a certainty of two victims."""
    frame_ = runs({"fp": 0.5, "odd": 0.5}, victims=6, repetitions=30, noise=0.001)
    shift = {"v0": -0.4, "v1": 0.3, "v2": -0.3, "v3": 0.35, "v4": -0.35, "v5": 0.2}
    odd = frame_.defense_label == "odd"
    frame_.loc[odd, list(ranking.CRITERIA)] += frame_[odd].victim.map(shift).to_numpy()[:, None]
    verdict = duel(ranking.duels(frame_), "odd", "fp").verdicts["asr"]
    assert verdict.result == "tie"
    assert (verdict.wins, verdict.losses) == (3, 3)


def test_who_is_left_out_and_that_it_is_said(write: Write, folder: Path) -> None:
    write(key="a", defense="fp")
    write(key="b")
    write(key="c", defense="oracle", assumes=["trigger"], asr=0.0)
    write(key="d", defense="unibp", weak_attack=True)
    write(key="e", defense="unibp", status="failed", reason="no disk")
    write(key="f", defense="unibp", attack=None, poisoning_ratio=None, asr=None, ra=None, der=None, rdr=None)
    kept, out = ranking.eligible(frame.load([folder]).runs)
    assert sorted(kept.defense) == ["fp", "ft"]
    assert out == {"failed": 1, "of a weak attack": 1, "that assume more than clean data": 1, "on clean networks": 1}
    (medians,), (duels,) = ranking.tables(frame.load([folder]).runs)
    assert [r.cells[0][0] for r in medians.rows] == ["fp", "ft"]
    left = "1 failed, 1 of a weak attack, 1 that assume more than clean data, 1 on clean networks"
    assert f"Runs that are not ranked: {left}." in duels.notes
    assert duels.notes[0].startswith("Better than FP and FT on ASR, RDR and ARR at once, beyond the uncertainty: none.")


def test_the_answer_names_who_beats_both(write: Write, folder: Path) -> None:
    gains = {"fp": 0.5, "ft": 0.6, "good": 0.05}
    for victim in range(6):
        for name, value in gains.items():
            write(key=f"{name}{victim}", victim=f"v{victim}", defense=name, asr=value, rdr=value, arr=value, ra=0.1)
    medians, duels = ranking.tables(frame.load([folder]).runs)
    assert "at once, beyond the uncertainty: good." in duels[0].notes[0]
    assert duels[0].notes[0] in medians[0].notes
    assert "win" in duels[0].rows[-1].cells[4] or "win" in duels[0].rows[0].cells[4]


def test_an_answer_from_a_single_victim_says_so(write: Write, folder: Path) -> None:
    for repetition in range(6):
        for name, value in {"fp": 0.5, "ft": 0.6, "good": 0.05}.items():
            write(key=f"{name}{repetition}", repetition=repetition, defense=name, asr=value, rdr=value, arr=value,
                  ra=0.1)  # fmt: skip
    _, (duels,) = ranking.tables(frame.load([folder]).runs)
    assert duels.notes[0].endswith("at once, beyond the uncertainty: good (on a single victim).")
