"""The data regimes: how many clean images, and which."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.dataset import Regime, draw_clean
from backdoor_bench.errors import BenchError, ConfigError, DataError

SIZES = [40, 60, 100]
LABELS = torch.cat([torch.full((size,), label) for label, size in enumerate(SIZES)])[
    torch.randperm(200, generator=torch.Generator().manual_seed(0))
]


def drawn(spc: int | None = None, clean_ratio: float | None = None, **options: object) -> tuple[set[int], set[int]]:
    """Train and validation positions."""
    draw = draw_clean(LABELS, Regime.of(spc, clean_ratio), "d", **{"repetition": 0, **options})
    return set(draw.train.tolist()), set(draw.validation.tolist())


def per_class(positions: set[int]) -> list[int]:
    return torch.bincount(LABELS[sorted(positions)], minlength=3).tolist()


def test_neither_is_five_percent() -> None:
    assert Regime.of(None, None) == Regime(None, 0.05)


def test_both_is_an_error_that_names_both() -> None:
    with pytest.raises(ConfigError, match=r"spc=10 and clean_ratio=0.05"):
        Regime.of(10, 0.05)


@pytest.mark.parametrize("spc", [1, 0, -2, 2.5, True, float("inf"), float("nan"), "ten"])
def test_spc_that_cannot_be(spc: object) -> None:
    with pytest.raises(ConfigError, match=f"spc={spc}: expected a whole number of at least 2"):
        Regime.of(spc, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan"), "much", True])
def test_ratio_that_cannot_be(ratio: object) -> None:
    with pytest.raises(ConfigError, match=f"clean_ratio={ratio}: expected a fraction"):
        Regime.of(None, ratio)  # type: ignore[arg-type]


def test_spc_larger_than_a_class_says_the_numbers() -> None:
    with pytest.raises(DataError, match=r"spc=50, but class 0 has 40 images; use 40 or fewer"):
        drawn(spc=50)


def test_ratio_too_small_to_split_says_the_numbers() -> None:
    with pytest.raises(DataError, match=r"clean_ratio=0.005 of 200 images leaves 1 over 3 classes.*spc=2"):
        drawn(clean_ratio=0.005)


@pytest.mark.parametrize(
    ("ratio", "sizes", "counts"),
    [
        (0.05, [40, 60, 100], [2, 3, 5]),
        (0.1, [45, 45, 10], [5, 4, 1]),  # 4.5 + 4.5 + 1: one more, to the lower label
        (0.1, [33, 36, 31], [3, 4, 3]),  # 3.3 + 3.6 + 3.1
        (0.05, [50, 50, 110], [3, 3, 5]),  # 10.5 is 11, halves up: 2.5 + 2.5 + 5.5 all lack one half, two get it
        (0.29, [100, 100], [29, 29]),  # 0.29 * 100 is 28.999999999999996 in binary
        (1.0, [7, 8], [7, 8]),
    ],
)
def test_a_ratio_is_spread_by_largest_remainder(ratio: float, sizes: list[int], counts: list[int]) -> None:
    assert Regime.of(None, ratio).counts(sizes) == counts


def test_published_sizes() -> None:
    assert Regime.of(None, 0.05).counts([5000] * 10) == [250] * 10
    gtsrb = [
        210,
        2220,
        2250,
        1410,
        1980,
        1860,
        420,
        1440,
        1410,
        1470,
        2010,
        1320,
        2100,
        2160,
        780,
        630,
        420,
        1110,
        1200,
    ]
    gtsrb += [210, 360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070]
    gtsrb += [300, 360, 240, 240]
    counts = Regime.of(None, 0.01).counts(gtsrb)
    assert sum(gtsrb) == 39_209
    assert sum(counts) == 392
    assert all(abs(count - 0.01 * size) < 1 for count, size in zip(counts, gtsrb, strict=True))


def test_spc_draws_so_many_of_each_class() -> None:
    for spc, train_each in ((2, 1), (10, 9), (40, 36)):
        train, validation = drawn(spc=spc)
        assert per_class(train) == [train_each] * 3
        assert per_class(validation) == [spc - train_each] * 3


def test_train_and_validation_are_disjoint_and_without_repeats() -> None:
    draw = draw_clean(LABELS, Regime.of(None, 0.5), "d", 0)
    everything = torch.cat([draw.train, draw.validation])
    assert len(everything) == len(everything.unique()) == 100
    assert everything.dtype == torch.int64


def test_the_whole_set() -> None:
    train, validation = drawn(clean_ratio=1.0)
    assert train | validation == set(range(200))
    assert per_class(validation) == [4, 6, 10]


def test_a_class_with_one_image_gets_no_validation() -> None:
    train, validation = drawn(clean_ratio=0.025)  # 1 + 1.5 + 2.5 = 5: one, two, two
    assert per_class(train) == [1, 1, 1]
    assert per_class(validation) == [0, 1, 1]


@pytest.mark.parametrize("poisoned", [False, True])
def test_larger_regimes_contain_smaller_ones(poisoned: bool) -> None:
    altered = torch.rand(200, generator=torch.Generator().manual_seed(3)) < 0.4 if poisoned else None
    nested = [drawn(spc=spc, altered=altered) for spc in (2, 10, 40)]
    sets = [train | validation for train, validation in nested]
    assert sets[0] < sets[1] < sets[2]


def test_the_draw_depends_on_data_set_and_repetition_alone() -> None:
    torch.manual_seed(5)
    first = drawn(spc=10)
    torch.manual_seed(6)
    assert drawn(spc=10) == first
    assert drawn(spc=10, repetition=1) != first
    other = draw_clean(LABELS, Regime.of(10, None), "another", 0)
    assert set(other.train.tolist()) != first[0]


def test_an_altered_image_is_replaced_by_the_next_unaltered_one() -> None:
    order = []  # class 1 in the seeded order, from draws that grow by one
    for spc in range(2, 21):
        train, validation = drawn(spc=spc)
        order += [i for i in train | validation if LABELS[i] == 1 and i not in order]
    altered = torch.zeros(200, dtype=torch.bool)
    drawn_of_five = {i for part in drawn(spc=5) for i in part if LABELS[i] == 1}
    lost = sorted(drawn_of_five)[:2]
    altered[lost] = True
    draw = draw_clean(LABELS, Regime.of(5, None), "d", 0, altered)
    now = {i for i in torch.cat([draw.train, draw.validation]).tolist() if LABELS[i] == 1}
    following = [i for i in order if i not in drawn_of_five][:2]
    assert now == drawn_of_five - set(lost) | set(following)
    assert draw.replaced == 2
    assert {i for part in drawn(spc=5) for i in part if LABELS[i] != 1} == {
        i for i in torch.cat([draw.train, draw.validation]).tolist() if LABELS[i] != 1
    }


def test_a_class_without_unaltered_images_gives_its_clean_originals() -> None:
    altered = LABELS == 2
    draw = draw_clean(LABELS, Regime.of(10, None), "d", 0, altered)
    assert (set(draw.train.tolist()), set(draw.validation.tolist())) == drawn(spc=10)
    assert draw.replaced == 0


def test_originals_only_fill_what_is_missing() -> None:
    altered = LABELS == 0
    spared = altered.nonzero().flatten()[[3, 17, 30]]
    altered[spared] = False
    draw = draw_clean(LABELS, Regime.of(10, None), "d", 0, altered)
    chosen = torch.cat([draw.train, draw.validation])
    assert set(spared.tolist()) <= set(chosen.tolist())
    assert int(altered[chosen].sum()) == 7
    already = len(set(spared.tolist()) & set.union(*drawn(spc=10)))
    assert draw.replaced == 3 - already


def test_all_takes_clean_originals() -> None:
    altered = torch.ones(200, dtype=torch.bool)
    draw = draw_clean(LABELS, Regime.of(10, None), "d", 0, altered, "all")
    assert (set(draw.train.tolist()), set(draw.validation.tolist())) == drawn(spc=10)
    assert draw.replaced == 0


def test_an_unknown_source_is_an_error() -> None:
    with pytest.raises(BenchError, match="clean_from=some: expected unpoisoned or all"):
        drawn(spc=2, clean_from="some")
