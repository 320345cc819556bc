"""Equal sets cannot be told apart, different ones can, and each classifier sees what it should."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from metrics.two_sample import classifier_auc, gaussian_mmd, transfer_accuracy

KINDS = ("neighbours", "linear", "forest")


def normal(seed, rows, genes=20, shift=0.0, spread=1.0):
    return shift + spread * np.random.default_rng(seed).normal(size=(rows, genes))


@pytest.mark.parametrize("kind", KINDS)
def test_two_samples_of_one_distribution_have_an_auc_near_a_half(kind):
    values = [classifier_auc(normal(k, 80), normal(k + 50, 80), kind, k) for k in range(4)]
    assert abs(np.mean(values) - 0.5) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shifted_sample_is_recognised(kind):
    assert classifier_auc(normal(0, 60), normal(1, 60, shift=1.0), kind) > 0.9


def test_a_narrow_sample_of_the_right_mean_is_seen_by_the_forest_and_not_by_the_linear_one():
    real, narrow = normal(0, 100), normal(1, 100, spread=0.2)
    assert classifier_auc(real, narrow, "forest") > 0.95
    assert classifier_auc(real, narrow, "linear") < 0.7


def test_small_sets_have_no_auc_and_an_unknown_classifier_is_refused():
    assert classifier_auc(normal(0, 9), normal(1, 90), "linear") is None
    with pytest.raises(ValueError, match="network"):
        classifier_auc(normal(0, 20), normal(1, 20), "network")


def test_mmd_is_the_unbiased_estimate_with_the_median_distance_as_bandwidth():
    real, generated = normal(0, 7, 3), normal(1, 5, 3)
    found = gaussian_mmd(real, generated)
    pooled = np.concatenate([real, generated])
    distances = np.linalg.norm(pooled[:, None] - pooled, axis=2)
    bandwidth = np.median(distances[np.triu_indices(12, 1)])
    assert found["bandwidth"] == pytest.approx(bandwidth)
    gamma = 1 / (2 * bandwidth**2)
    expected = -2 * rbf_kernel(real, generated, gamma).mean()
    for part in (real, generated):
        kernel, n = rbf_kernel(part, part, gamma), len(part)
        expected += (kernel.sum() - n) / (n * (n - 1))
    assert found["squared"] == pytest.approx(expected)


def test_mmd_grows_with_the_shift_and_is_about_zero_without():
    values = [gaussian_mmd(normal(0, 90), normal(1, 90, shift=s))["squared"] for s in (0, 0.3, 1)]
    assert abs(values[0]) < 0.01
    assert values[0] < values[1] < values[2]


def test_transfer_accuracy_is_balanced_over_the_classes_that_are_known():
    train, labels = np.array([[0.0], [0.1], [1.0], [1.1]] * 5), np.array(["a", "a", "b", "b"] * 5)
    test = np.array([[0.0], [0.0], [0.0], [0.0], [1.0]])
    found = transfer_accuracy(train, labels, test, np.array(["a", "a", "a", "b", "b"]))
    assert found == pytest.approx((1 + 0.5) / 2)
    assert transfer_accuracy(train, labels, test, np.array(["c"] * 5)) is None
    assert transfer_accuracy(train[:2], labels[:2], test, np.array(["a"] * 5)) is None
