from __future__ import annotations

import pytest

from bench.stats import ratio, summary


def test_quartiles_of_known_samples() -> None:
    found = summary([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.median, found.high, found.count) == (2.0, 3.0, 4.0, 5)


def test_one_sample_is_its_own_spread() -> None:
    found = summary([7.0])
    assert (found.low, found.median, found.high) == (7.0, 7.0, 7.0)
    assert not found.noisy


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summary([])


def test_an_outlier_moves_neither_median_nor_quartiles_far() -> None:
    calm, hit = summary([1.0, 1.0, 1.0, 1.0, 1.0]), summary([1.0, 1.0, 1.0, 1.0, 900.0])
    assert (calm.median, calm.low, calm.high) == (hit.median, hit.low, hit.high)


def test_wide_quartiles_are_noisy() -> None:
    assert summary([1.0, 2.0, 3.0]).noisy
    assert not summary([1.00, 1.01, 1.02]).noisy


def test_a_ratio_is_of_paired_rounds() -> None:
    """A slow machine makes both sides slow: the ratio does not see it."""
    found = ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert found is not None
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_what_has_no_pair_is_left_out() -> None:
    found = ratio([2.0, 3.0, 9.0], [1.0, 0.0])
    assert found is not None
    assert (found.median, found.count) == (2.0, 1)
    assert ratio([], [1.0]) is None
    assert ratio([1.0], [0.0]) is None
