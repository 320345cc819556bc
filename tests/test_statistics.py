"""Intervals and differences have their textbook values and their promised error rates."""

import numpy as np
import pytest

from metrics.statistics import difference, summary


def test_interval_of_a_mean_is_students():
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["sd"] == pytest.approx(np.sqrt(2.5))
    reach = 2.776445105 * np.sqrt(2.5 / 5)  # t of 4 degrees of freedom at 97.5 %
    assert found["interval"] == pytest.approx([3 - reach, 3 + reach], rel=1e-8)


def test_a_single_value_has_no_interval():
    assert summary([2.0]) == {"draws": [2.0], "mean": 2.0, "sd": None, "interval": None}
    assert difference([1.0], [2.0], paired=True) is None


def test_pairing_sees_a_small_difference_that_common_noise_hides():
    common = np.array([0.0, 30.0, -20.0, 10.0, 50.0])
    one, two = common + 1 + np.array([0.1, -0.1, 0.2, 0.0, -0.2]), common
    paired, unpaired = difference(one, two, True), difference(one, two, False)
    assert paired["difference"] == unpaired["difference"] == pytest.approx(1)
    assert paired["larger_than_noise"]
    assert not unpaired["larger_than_noise"]


@pytest.mark.parametrize("paired", [True, False])
def test_equal_models_are_called_different_one_time_in_twenty(paired):
    draw = np.random.default_rng(0)
    called = sum(
        difference(*draw.normal(size=(2, 5)), paired)["larger_than_noise"] for _ in range(1000)
    )
    assert 20 <= called <= 80


def test_values_without_any_spread_are_compared_as_they_are():
    found = difference([2.0, 2.0], [1.0, 1.0], paired=False)
    assert (found["interval"], found["larger_than_noise"]) == ([1.0, 1.0], True)
    assert not difference([2.0, 2.0], [2.0, 2.0], paired=True)["larger_than_noise"]
