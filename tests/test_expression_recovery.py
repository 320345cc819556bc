"""Expression read back from features: closed forms, constant genes, controls and intervals."""

import numpy as np
import pytest

from metrics.expression_recovery import (
    expression_recovery,
    fit_expression_reader,
    gene_correlations,
    log_per_million,
    most_abundant,
    read_expression,
    recovery_scores,
)


@pytest.fixture
def linear():
    """Features and expression that depend on them linearly: train and test samples."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(5, 7))
    features = draw.normal(size=(300, 5))
    return features[:200], features[:200] @ weights + 3, features[200:], features[200:] @ weights


def test_expression_that_is_linear_in_the_features_is_recovered_whole(linear):
    assert expression_recovery(*linear) == pytest.approx(np.ones(7), abs=1e-4)


def test_one_feature_and_one_gene_give_the_correlation_of_feature_and_gene():
    # A straight line through one feature keeps |r|, whatever its slope and penalty.
    draw = np.random.default_rng(1)
    features, noise = draw.normal(size=(400, 1)), draw.normal(size=(400, 1))
    gene = features + noise
    found = expression_recovery(features[:200], gene[:200], features[200:], gene[200:])
    expected = np.corrcoef(features[200:, 0], gene[200:, 0])[0, 1]
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_penalty_is_chosen_by_the_leave_one_out_error_written_as_a_loop():
    draw = np.random.default_rng(2)
    features, expression = draw.normal(size=(30, 40)), draw.normal(size=(30, 3))
    expression += features[:, :3]
    reader = fit_expression_reader(features, expression)
    scaled = reader[0].transform(features)

    def error(alpha):
        total = 0.0
        for left_out in range(30):
            kept = np.arange(30) != left_out
            centre, mean = scaled[kept].mean(axis=0), expression[kept].mean(axis=0)
            x, y = scaled[kept] - centre, expression[kept] - mean
            weights = np.linalg.solve(x.T @ x + alpha * np.eye(40), x.T @ y)
            predicted = (scaled[left_out] - centre) @ weights + mean
            total += np.square(predicted - expression[left_out]).sum()
        return total

    assert reader[1].alpha_ == min(reader[1].alphas, key=error)


def test_correlations_equal_numpys_and_are_nan_for_constant_genes():
    draw = np.random.default_rng(3)
    predicted, measured = draw.normal(size=(20, 4)), draw.normal(size=(20, 4)).astype(np.float32)
    measured[:, 1] = 0.1
    predicted[:, 2] = 1 / 3
    found = gene_correlations(predicted, measured)
    assert np.isnan(found[1:3]).all()
    for gene in (0, 3):
        expected = np.corrcoef(predicted[:, gene], measured[:, gene])[0, 1]
        assert found[gene] == pytest.approx(expected, rel=1e-6)


def test_the_most_abundant_genes_come_first():
    log_expression = np.array([[0.0, 5.0, 2.0, 3.0], [1.0, 5.0, 2.0, 1.0]])
    assert most_abundant(log_expression, 2).tolist() == [1, 2]


def test_own_profile_beats_shuffled_and_a_zero_profile_has_no_score(linear):
    train_features, train_expression, features, expression = linear
    draw = np.random.default_rng(4)
    predicted = read_expression(fit_expression_reader(train_features, train_expression), features)
    conditions = {
        "own": predicted + draw.normal(size=predicted.shape),
        "shuffled": predicted[draw.permutation(len(predicted))],
        "zero": np.repeat(predicted[:1], len(predicted), axis=0),
    }
    scores = recovery_scores(conditions, expression, draw, resamples=200)
    low, high = scores["own"]["interval"]
    assert low < scores["own"]["median_r"] < high
    assert low > scores["shuffled"]["interval"][1]
    assert scores["shuffled"]["interval"][0] < 0 < scores["shuffled"]["interval"][1]
    assert scores["zero"] == {"median_r": None, "interval": None, "genes": 0}


def test_interval_covers_the_true_correlation_about_as_often_as_it_says():
    draw = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        one, two = draw.normal(size=(2, 60, 1))
        scores = recovery_scores({"x": one + two}, one, draw, resamples=200)
        low, high = scores["x"]["interval"]
        covered += low <= np.sqrt(0.5) <= high
    assert 85 <= covered <= 100


def test_samples_of_one_slide_are_resampled_together():
    draw = np.random.default_rng(6)
    one = draw.normal(size=(10, 1))
    pair = one + draw.normal(size=(10, 1)), one
    repeated = [np.repeat(values, 8, axis=0) for values in pair]
    widths = {}
    for name, groups in (("alone", None), ("slide", np.repeat(np.arange(10), 8).astype(str))):
        scores = recovery_scores({"x": repeated[0]}, repeated[1], draw, groups, resamples=400)
        widths[name] = np.ptp(scores["x"]["interval"])
    assert widths["slide"] > 1.7 * widths["alone"]


@pytest.mark.parametrize(
    ("features", "expression", "message"),
    [
        (np.ones((4, 3)), np.ones((5, 2)), "common samples"),
        (np.ones((2, 3)), np.ones((2, 2)), "at least 3"),
        (np.full((4, 3), np.nan), np.ones((4, 2)), "finite"),
    ],
)
def test_unusable_input_raises(features, expression, message):
    with pytest.raises(ValueError, match=message):
        fit_expression_reader(features, expression)


def test_depth_of_sequencing_does_not_change_log_per_million():
    counts = np.array([[1.0, 3.0, 0.0], [2.0, 6.0, 0.0], [0.0, 0.0, 0.0]])
    found = log_per_million(counts)
    assert found[0] == pytest.approx(np.log1p([250_000, 750_000, 0]))
    assert np.array_equal(found[0], found[1])
    assert not found[2].any()
