"""Resampled distances equal the plain distance, intervals cover it, and extrapolation unbiases."""

import numpy as np
import pytest

from metrics.frechet import frechet_distance
from metrics.frechet_resampling import _Products, frechet_infinity, frechet_interval


def test_a_resample_has_the_distance_of_its_rows_written_out():
    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(30, 50)) + 7, 2 * draw.normal(size=(40, 50))
    products = _Products(one, two)
    rows1, rows2 = draw.integers(30, size=25), draw.integers(40, size=60)
    expected = frechet_distance(one[rows1], two[rows2])
    assert products.distance(rows1, rows2) == pytest.approx(expected, rel=1e-9)
    whole = products.distance(np.arange(30), np.arange(40))
    assert whole == pytest.approx(frechet_distance(one, two), rel=1e-9)


def test_interval_covers_the_mean_distance_of_sets_of_this_size():
    draw = np.random.default_rng(1)

    def sets():
        return draw.normal(size=(60, 8)), 1.3 * draw.normal(size=(60, 8)) + 0.7

    truth = np.mean([frechet_distance(*sets()) for _ in range(2000)])
    covered = 0
    for _ in range(100):
        interval = frechet_interval(*sets(), draw, 60)
        covered += interval.low <= truth <= interval.high
    assert 85 <= covered <= 100


def test_standard_error_of_one_dimensional_means_has_its_closed_form():
    # Equal spread: d = (m1 - m2)^2, whose standard error is 2 |m1 - m2| sqrt(2 / N).
    draw = np.random.default_rng(2)
    one, two = draw.normal(size=(2, 400, 1))
    found = frechet_interval(one, two + 10, draw, 400).standard_error
    assert found == pytest.approx(2 * 10 * np.sqrt(2 / 400), rel=0.15)


def test_extrapolation_removes_the_bias_of_small_sets():
    # Two samples of one normal distribution: the distance is 0, at N = 200 it is not.
    draw = np.random.default_rng(3)
    found, plain = [], []
    for _ in range(20):
        one, two = draw.normal(size=(2, 200, 10))
        found.append(frechet_infinity(one, two, draw).value)
        plain.append(frechet_distance(one, two))
    assert np.mean(plain) > 0.2
    assert abs(np.mean(found)) < 0.1 * np.mean(plain)


def test_extrapolation_finds_a_shift_and_says_which_sizes_it_used():
    draw = np.random.default_rng(4)
    one, two = draw.normal(size=(2, 400, 5))
    found = frechet_infinity(one, two + 1, draw)
    assert found.value == pytest.approx(5, abs=0.8)
    assert (found.sizes[0], found.sizes[-1]) == (100, 400)
    assert frechet_infinity(one[:15], two, draw) is None


def test_the_generator_given_decides_and_bad_features_raise():
    draw = np.random.default_rng(5)
    one, two = draw.normal(size=(2, 20, 4))
    first = frechet_interval(one, two, np.random.default_rng(7), 20)
    assert first == frechet_interval(one, two, np.random.default_rng(7), 20)
    assert first != frechet_interval(one, two, np.random.default_rng(8), 20)
    with pytest.raises(ValueError, match="finite"):
        frechet_interval(one * np.nan, two, draw)
