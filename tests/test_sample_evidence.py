"""Samples are compared tissue by tissue, and copies of training profiles are noticed."""

import numpy as np

from metrics.sample_evidence import balanced, sample_evidence

TISSUES = np.repeat(["lung", "brain"], 20)


def profiles(seed):
    return np.random.default_rng(seed).normal(size=(40, 12)) + 3 * (TISSUES == "brain")[:, None]


def test_both_sides_hold_equally_many_of_each_common_tissue():
    one, two = np.array(["a"] * 5 + ["b"] * 3), np.array(["b"] * 9 + ["a"] * 2 + ["c"] * 4)
    rows, others = balanced(one, two, np.random.default_rng(0))
    assert one[rows].tolist() == two[others].tolist() == ["a"] * 2 + ["b"] * 3
    assert len(set(rows)) == len(set(others)) == 5


def test_samples_that_are_training_profiles_are_called_copies_and_new_ones_are_not():
    real, training = profiles(0), profiles(1)
    copies, _, _ = sample_evidence(real, TISSUES, training, TISSUES, training, TISSUES, 0)
    fresh, _, _ = sample_evidence(real, TISSUES, profiles(2), TISSUES, training, TISSUES, 0)
    assert copies["copying"]["closer_to_training"] == 1
    assert fresh["copying"]["closer_to_training"] < 0.8
    assert fresh["tissue_accuracy"] == {"real_to_generated": 1, "generated_to_real": 1}


def test_samples_of_no_tissue_are_compared_with_all_and_have_no_tissue_accuracy():
    none = np.full(40, "")
    found, rows, others = sample_evidence(
        profiles(0), TISSUES, profiles(1), none, profiles(2), TISSUES, 0
    )
    assert len(rows) == len(others) == 40
    assert "tissue_accuracy" not in found
    assert found["floor"]["profiles"] == [40, 40]


def test_without_held_out_profiles_there_is_no_evidence():
    few = profiles(0)[:1]
    assert not sample_evidence(few, TISSUES[:1], profiles(1), TISSUES, profiles(2), TISSUES, 0)[0]
