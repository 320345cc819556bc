"""The Frechet distance equals its closed forms and the matrix square root, on both paths."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric

from metrics import frechet
from metrics.frechet import (
    Moments,
    RunningMoments,
    feature_moments,
    frechet_distance,
    frechet_distance_of_moments,
)


def by_square_root(features1, features2):
    """The textbook formula, with scipy's matrix square root."""
    one, two = np.cov(features1, rowvar=False), np.cov(features2, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real
    difference = features1.mean(axis=0) - features2.mean(axis=0)
    return difference @ difference + np.trace(one + two - 2 * root)


def test_both_paths_equal_the_matrix_square_root_at_full_rank():
    draw = np.random.default_rng(0)
    one = draw.normal(size=(400, 20)) @ draw.normal(size=(20, 20))
    two = draw.normal(size=(300, 20)) @ draw.normal(size=(20, 20)) + 1
    expected = by_square_root(one, two)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_moments(feature_moments(one), feature_moments(two)) == pytest.approx(
        expected, rel=1e-9
    )


def test_fewer_samples_than_features_give_the_same_number_by_product_and_by_eigenvalues():
    draw = np.random.default_rng(1)
    one, two = draw.normal(size=(30, 50)), 2 * draw.normal(size=(70, 50)) + 0.5
    by_moments = frechet_distance_of_moments(feature_moments(one), feature_moments(two))
    assert frechet_distance(one, two) == pytest.approx(by_moments, rel=1e-6)


def test_one_dimensional_gaussians_have_their_closed_form():
    draw = np.random.default_rng(2)
    one, two = draw.normal(1, 2, size=(50, 1)), draw.normal(4, 5, size=(60, 1))
    expected = (one.mean() - two.mean()) ** 2 + (one.std(ddof=1) - two.std(ddof=1)) ** 2
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-12)


def test_equal_covariances_leave_the_distance_of_the_means():
    features = np.random.default_rng(3).normal(size=(40, 200))
    shift = np.linspace(-1, 1, 200)
    assert frechet_distance(features, features + shift) == pytest.approx(shift @ shift, rel=1e-9)


def test_diagonal_gaussians_have_their_closed_form():
    one = Moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    two = Moments(np.array([1.0, 0.0, 0.0]), np.diag([16.0, 4.0, 1.0]))
    assert frechet_distance_of_moments(one, two) == pytest.approx(1 + 9 + 0 + 4, rel=1e-12)


def test_singular_covariances_in_crossing_planes_have_their_closed_form():
    one = Moments(np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    two = Moments(np.zeros(3), np.diag([0.0, 9.0, 2.0]))
    assert frechet_distance_of_moments(one, two) == pytest.approx(1 + 1 + 2, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 64), (40, 64), (300, 64)])
def test_identical_sets_are_at_distance_zero(shape):
    features = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    assert frechet_distance(features, features.copy()) == pytest.approx(0, abs=1e-8)


def test_two_samples_a_set_have_their_closed_form():
    # One direction each, of lengths |d|^2 / 2; the trace of the root is |d1 . d2| / 2.
    one, two = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[1.0, 1, 0], [1, 3, 0]])
    means = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    assert frechet_distance(one, two) == pytest.approx(means + 2 + 2, rel=1e-12)
    assert frechet_distance(one, one + 1) == pytest.approx(3, rel=1e-12)


def test_constant_and_duplicated_samples_are_handled():
    constant = np.ones((10, 30))
    assert frechet_distance(constant, constant + 1) == pytest.approx(30)
    features = np.random.default_rng(5).normal(size=(10, 30))
    twice = np.concatenate([features, features])
    # Same spread, another N: the covariances differ by the factor (2 * 9) / 19.
    spread = np.square(features - features.mean(axis=0)).sum() / 9
    expected = spread * (1 - np.sqrt(18 / 19)) ** 2
    assert frechet_distance(features, twice) == pytest.approx(expected, rel=1e-6)


def test_distance_is_symmetric():
    draw = np.random.default_rng(6)
    one, two = draw.normal(size=(20, 40)), draw.normal(size=(35, 40))
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-12)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (np.ones((1, 4)), "2 samples"),
        (np.array([[1.0, np.nan, 0, 0], [0, 0, 0, 0]]), "finite"),
        (np.ones((3, 5)), "cannot be compared"),
    ],
)
def test_unusable_features_raise(one, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(one, np.zeros((3, 4)))


@pytest.mark.parametrize("sizes", [[5, 1, 34], [40], [1] * 40])
def test_streamed_moments_equal_those_of_all_features_at_once(sizes):
    features = 100 + np.random.default_rng(7).normal(size=(40, 6))
    running = RunningMoments(6)
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        running.add(part)
    found = running.moments()
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-10)


def test_chunks_change_nothing(monkeypatch):
    draw = np.random.default_rng(8)
    one, two = draw.normal(size=(90, 5)), draw.normal(size=(70, 5)) + 1
    whole = frechet_distance(one, two)
    monkeypatch.setattr(frechet, "CHUNK", 8)
    assert frechet_distance(one, two) == pytest.approx(whole, rel=1e-12)


def test_one_sample_or_other_features_cannot_be_streamed():
    running = RunningMoments(3)
    running.add(np.ones((1, 3)))
    with pytest.raises(ValueError, match="2 samples"):
        running.moments()
    with pytest.raises(ValueError, match="do not go together"):
        running.add(np.ones((2, 4)))
    with pytest.raises(ValueError, match="finite"):
        running.add(np.full((2, 3), np.inf))


def test_distance_equals_pytorch_fid_and_torch_fidelity():
    draw = np.random.default_rng(9)
    mixing = draw.normal(size=(40, 40))
    one, two = draw.normal(size=(200, 40)) @ mixing, draw.normal(size=(150, 40)) + 0.5
    found = frechet_distance(one, two)
    statistics = [(rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in (one, two)]
    with warnings.catch_warnings():
        # scipy announces the end of sqrtm's argument `disp`, which pytorch-fid gives.
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = calculate_frechet_distance(*statistics[0], *statistics[1])
    assert found == pytest.approx(theirs, rel=1e-6)
    named = [dict(zip(("mu", "sigma"), pair, strict=True)) for pair in statistics]
    other = fid_statistics_to_metric(*named, verbose=False)
    assert found == pytest.approx(other["frechet_inception_distance"], rel=1e-6)
