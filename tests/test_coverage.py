"""Precision, recall, density and coverage equal their closed forms and two other codes."""

import numpy as np
import prdc
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from metrics import coverage
from metrics.coverage import coverage_metrics, distance_blocks


def distances(one, two):
    return np.concatenate([block for _, block in distance_blocks(one, two)])


def test_identical_sets_are_wholly_precise_recalled_and_covered():
    features = np.random.default_rng(0).normal(size=(50, 6))
    found = coverage_metrics(features, features.copy())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # k tiles (itself and k - 1 others) lie strictly within a ball that reaches its k-th neighbour.
    assert found.density == pytest.approx(1, abs=1e-12)


def test_sets_far_apart_score_zero():
    features = np.random.default_rng(1).normal(size=(50, 6))
    assert coverage_metrics(features, features + 100) == (0, 0, 0, 0)


def test_a_dropped_mode_lowers_recall_and_coverage_and_leaves_precision():
    draw = np.random.default_rng(2)
    modes = np.repeat([[0.0, 0], [100, 0]], 60, axis=0)
    real = modes + draw.normal(size=(120, 2))
    found = coverage_metrics(real, draw.normal(size=(120, 2)))
    assert found.precision > 0.8
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert found.coverage == pytest.approx(0.5, abs=0.05)


def test_points_on_a_line_have_their_closed_form():
    # Real 0..5; every radius to the first neighbour is 1. Generated 0.5 is inside two balls,
    # 6 on the edge of one, 20 in none.
    real = np.arange(6.0)[:, None]
    generated = np.array([[0.5], [6.0], [20.0]])
    found = coverage_metrics(real, generated, neighbours=1, density_neighbours=1)
    assert found.precision == pytest.approx(2 / 3)  # an edge counts
    assert found.recall == 1  # generated radii 5.5, 5.5 and 14 hold all
    assert found.density == pytest.approx(2 / 3)  # an edge does not count
    assert found.coverage == pytest.approx(2 / 6)


def test_duplicated_and_constant_tiles_keep_distances_of_exactly_zero():
    draw = np.random.default_rng(3)
    tile = draw.normal(size=(1, 2048)) * 10 + 50
    assert not distances(np.repeat(tile, 8, axis=0), np.repeat(tile, 3, axis=0)).any()
    constant = np.repeat(tile, 8, axis=0)
    assert coverage_metrics(constant, constant) == (1, 1, 0, 0)  # no room strictly within a point


def test_too_few_tiles_for_neighbours_give_none():
    assert coverage_metrics(np.ones((5, 2)), np.ones((9, 2))) is None


def test_blocks_of_rows_change_nothing(monkeypatch):
    draw = np.random.default_rng(4)
    real, generated = draw.normal(size=(100, 8)), draw.normal(size=(90, 8)) + 0.4
    whole = coverage_metrics(real, generated)
    monkeypatch.setattr(coverage, "ROWS", 7)
    assert coverage_metrics(real, generated) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("shape", [(80, 100, 5), (150, 90, 300)])
def test_both_pairs_equal_torch_fidelity_and_prdc(shape, capsys):
    draw = np.random.default_rng(5)
    count1, count2, width = shape
    real = draw.normal(size=(count1, width))
    generated = 0.9 * draw.normal(size=(count2, width)) + 0.1
    found = coverage_metrics(real, generated)
    precision, recall = calculate_precision_recall_full(
        torch.from_numpy(generated), torch.from_numpy(real)
    )
    assert (found.precision, found.recall) == pytest.approx((precision, recall), rel=1e-6)
    expected = prdc.compute_prdc(real, generated, nearest_k=5)
    assert found.density == pytest.approx(expected["density"], rel=1e-12)
    assert found.coverage == pytest.approx(expected["coverage"], rel=1e-12)


@pytest.mark.parametrize(
    ("one", "message"), [(np.ones((9, 3)), "cannot be compared"), (np.full((9, 4), np.nan), "fin")]
)
def test_unusable_features_raise(one, message):
    with pytest.raises(ValueError, match=message):
        coverage_metrics(one, np.ones((9, 4)))
