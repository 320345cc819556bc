"""Draws are compared one by one, and what limits the numbers is said in words."""

import numpy as np
import pytest

from metrics.comparison import compare_draws, comparison_notes
from metrics.frechet import frechet_distance


def test_every_draw_gives_its_own_distance_and_the_summary_is_over_draws():
    draw = np.random.default_rng(0)
    one = [draw.normal(size=(10, 6)) for _ in range(3)]
    two = [draw.normal(size=(12, 6)) + 1 for _ in range(3)]
    found = compare_draws(one, two, seed=1)
    expected = [frechet_distance(*pair) for pair in zip(one, two, strict=True)]
    assert found["fid"]["draws"] == expected
    assert found["fid"]["mean"] == pytest.approx(np.mean(expected))
    assert found["fid"]["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert found["tiles"] == [10, 12]
    assert found["kid"]["subset_size"] == 5
    assert found == compare_draws(one, two, seed=1)


def test_a_single_draw_has_no_deviation():
    features = np.random.default_rng(0).normal(size=(10, 6))
    assert compare_draws([features], [features + 1], seed=1)["fid"]["sd"] is None


def test_small_sets_are_said_once_and_short_pools_by_name():
    notes = comparison_notes([30, 600], ["real lung", "GAN lung"], 600)
    assert [note.split(":")[0] for note in notes] == ["real lung", "fewer than 2048 tiles"]
    assert comparison_notes([2048, 5000], ["real lung", "GAN lung"], 2048) == []
