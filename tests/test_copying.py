"""Copies of training tiles are found, and none are seen where there are none."""

import numpy as np
import pytest

from metrics.copying import copying_scores, nearest_tiles


def test_nearest_tile_is_the_one_of_a_full_search():
    draw = np.random.default_rng(0)
    features, among = draw.normal(size=(20, 5)), draw.normal(size=(30, 5))
    expected = np.linalg.norm(features[:, None] - among, axis=2)
    found = nearest_tiles(features, among)
    assert np.array_equal(found.numbers, expected.argmin(axis=1))
    assert found.distances == pytest.approx(expected.min(axis=1), rel=1e-9)


def test_a_copy_is_at_distance_zero_of_its_original():
    among = np.random.default_rng(1).normal(size=(30, 2048)) + 20
    found = nearest_tiles(among[[7, 3]].astype(np.float32), among.astype(np.float32))
    assert found.numbers.tolist() == [7, 3]
    assert found.distances.tolist() == [0, 0]


def test_independent_tiles_are_as_near_to_held_out_as_to_training_tiles():
    draw = np.random.default_rng(2)
    generated, training, held_out = (draw.normal(size=(n, 4)) for n in (400, 900, 300))
    found = copying_scores(generated, training, held_out, draw)
    assert found["interval"][0] < 0.5 < found["interval"][1]
    assert found["tiles"] == 300
    assert found["generated_to_training"] == pytest.approx(found["held_out_to_training"], rel=0.1)


def test_half_the_tiles_copied_raises_the_share_to_three_quarters():
    draw = np.random.default_rng(3)
    training, held_out, fresh = (draw.normal(size=(300, 20)) for _ in range(3))
    generated = np.concatenate([training[:150] + 1e-3, fresh[:150]])
    found = copying_scores(generated, training, held_out, draw)
    assert found["closer_to_training"] == pytest.approx(0.75, abs=0.06)
    assert found["interval"][0] > 0.5
    assert found["generated_to_training"][0] < 0.1 < found["held_out_to_training"][0]


def test_equal_distances_count_as_half():
    features = np.eye(6)
    found = copying_scores(features, features, features, np.random.default_rng(4))
    assert found["closer_to_training"] == 0.5
