"""Draws are compared one by one, and what limits the numbers is said in words."""

import numpy as np
import pytest

from metrics.comparison import compare_classes, compare_draws, comparison_notes
from metrics.coverage import coverage_metrics
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
    assert found["recall"]["draws"] == [
        coverage_metrics(*pair).recall for pair in zip(one, two, strict=True)
    ]
    assert found["fid"]["bootstrap"]["low"] < expected[0] < found["fid"]["bootstrap"]["high"]
    assert found["fid"]["infinity"]["value"] < found["fid"]["mean"]
    assert found == compare_draws(one, two, seed=1)


def test_a_single_draw_has_no_deviation():
    features = np.random.default_rng(0).normal(size=(10, 6))
    assert compare_draws([features], [features + 1], seed=1)["fid"]["sd"] is None


def test_small_sets_are_said_once_and_short_pools_by_name():
    notes = comparison_notes([30, 600], ["real lung", "GAN lung"], 600)
    assert [note.split(":")[0] for note in notes] == ["real lung", "fewer than 2048 tiles"]
    assert comparison_notes([2048, 5000], ["real lung", "GAN lung"], 2048) == []


def test_resamples_can_be_left_out_and_few_tiles_have_no_coverage():
    features = np.random.default_rng(0).normal(size=(5, 6))
    found = compare_draws([features], [features + 1], seed=1, resamples=0)
    assert "bootstrap" not in found["fid"]
    assert found["precision"] is None


def test_each_class_is_compared_with_its_own_class():
    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(12, 4)), draw.normal(size=(9, 4))
    labels1, labels2 = ["lung"] * 6 + ["brain"] * 6, ["brain"] * 4 + ["lung"] * 5
    found = compare_classes([one], [two], [labels1], [labels2])
    assert found["lung"]["fid"]["draws"] == [frechet_distance(one[:6], two[4:])]
    assert found["brain"]["tiles"] == [6, 4]
    assert compare_classes([one], [two], [["lung"] * 12], [["lung"] * 9]) == {}
    assert compare_classes([one], [two], [labels1], [["lung"] * 9]) == {}
