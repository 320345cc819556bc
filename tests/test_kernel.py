"""The kernel distance equals its definition written as loops, and is unbiased."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from metrics import kernel
from metrics.kernel import kernel_distance, polynomial_kernel, polynomial_mmd


def by_loops(one, two):
    """Equation 3 of Gretton et al. 2012, sample by sample."""

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    m, n = len(one), len(two)
    within1 = sum(k(one[i], one[j]) for i in range(m) for j in range(m) if i != j)
    within2 = sum(k(two[i], two[j]) for i in range(n) for j in range(n) if i != j)
    across = sum(k(x, y) for x in one for y in two)
    return within1 / (m * (m - 1)) + within2 / (n * (n - 1)) - 2 * across / (m * n)


def test_mmd_equals_its_definition():
    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(7, 5)), draw.normal(size=(9, 5)) + 0.3
    assert polynomial_mmd(one, two) == pytest.approx(by_loops(one, two), rel=1e-12)


def test_constant_sets_have_their_closed_form():
    one, two = np.zeros((4, 3)), np.ones((5, 3))
    # k(0, 0) = 1, k(1, 1) = (1 + 1)^3, k(0, 1) = 1
    assert polynomial_mmd(one, two) == pytest.approx(1 + 8 - 2)
    assert polynomial_kernel(two, two)[0, 0] == pytest.approx(8)


def test_two_samples_of_one_distribution_average_to_zero():
    draw = np.random.default_rng(1)
    values = [
        polynomial_mmd(draw.normal(size=(20, 8)), draw.normal(size=(20, 8))) for _ in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_subsets_as_large_as_the_sets_give_the_plain_mmd_without_spread():
    draw = np.random.default_rng(2)
    one, two = draw.normal(size=(12, 6)), draw.normal(size=(12, 6)) + 1
    found = kernel_distance(one, two, draw, subsets=5, subset_size=12)
    assert found.mean == pytest.approx(polynomial_mmd(one, two), rel=1e-9)
    assert found.sd == pytest.approx(0, abs=1e-9)


def test_subsets_are_drawn_by_the_generator_given_and_sized_by_the_smaller_set():
    draw = np.random.default_rng(3)
    one, two = draw.normal(size=(40, 6)), draw.normal(size=(30, 6))
    first = kernel_distance(one, two, np.random.default_rng(7))
    assert first == kernel_distance(one, two, np.random.default_rng(7))
    assert first != kernel_distance(one, two, np.random.default_rng(8))
    assert first.subset_size == 15
    assert first.sd > 0


def test_large_sets_give_the_same_subsets_and_numbers_as_small_ones(monkeypatch):
    draw = np.random.default_rng(4)
    one, two = draw.normal(size=(40, 6)), draw.normal(size=(30, 6)) + 0.1
    whole = kernel_distance(one, two, np.random.default_rng(7), subsets=10)
    monkeypatch.setattr(kernel, "WHOLE_KERNEL", 10)
    parts = kernel_distance(one, two, np.random.default_rng(7), subsets=10)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-9)
    assert parts.sd == pytest.approx(whole.sd, rel=1e-9)


@pytest.mark.parametrize(
    ("one", "size", "message"),
    [
        (np.ones((1, 4)), None, "2 samples"),
        (np.full((3, 4), np.inf), None, "finite"),
        (np.ones((3, 5)), None, "cannot be compared"),
        (np.ones((3, 4)), 4, "subsets of 4"),
    ],
)
def test_unusable_features_raise(one, size, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(one, np.zeros((3, 4)), np.random.default_rng(0), subset_size=size)


def test_kernel_distance_equals_torch_fidelity():
    draw = np.random.default_rng(5)
    one, two = draw.normal(size=(50, 30)), 1.2 * draw.normal(size=(50, 30)) + 0.3
    found = kernel_distance(one, two, draw, subsets=3, subset_size=50).mean
    theirs = kid_features_to_metric(
        torch.from_numpy(one), torch.from_numpy(two),
        kid_subsets=3, kid_subset_size=50, verbose=False,
    )  # fmt: skip
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
