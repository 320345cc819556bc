"""The quiz's statistics equal independent computations to 1e-9 on random tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quiz_site import SCALES
from scipy import stats
from sklearn import metrics

from quiz import statistics
from quiz.config import StudyConfig
from quiz.results import COLUMNS, study_numbers

RATINGS = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=6, max_size=80)
close = pytest.approx


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(1, 400))
def test_the_exact_interval_is_made_of_beta_quantiles(hits, trials):
    hits = min(hits, trials)
    share = statistics.exact_share(hits, trials)
    low = stats.beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    assert (share.low, share.high) == (close(low, abs=1e-9), close(high, abs=1e-9))


def test_the_chance_p_value_adds_up_the_binomial_terms_at_least_as_rare():
    for hits, trials in ((9, 12), (3, 24), (6, 12), (0, 5)):
        terms = stats.binom.pmf(np.arange(trials + 1), trials, 0.5)
        rare = terms[terms <= terms[hits] * (1 + 1e-7)].sum()
        assert statistics.chance_p(hits, trials) == close(rare, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(RATINGS)
def test_auc_interval_and_p_equal_pair_counting_delong_and_the_rank_sum_test(rows):
    truth, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], float)
    one, other = score[truth], score[~truth]
    if min(len(one), len(other)) < 2:
        return
    found = statistics.auc(truth, score)
    wins = np.array([[float(a > b) + 0.5 * (a == b) for b in other] for a in one])
    assert found.auc == close(wins.mean(), abs=1e-9)
    assert found.auc == close(metrics.roc_auc_score(truth, score), abs=1e-9)
    variance = sum((wins.mean(1) - wins.mean()) ** 2) / (len(one) - 1) / len(one)
    variance += sum((wins.mean(0) - wins.mean()) ** 2) / (len(other) - 1) / len(other)
    half = 1.959963984540054 * variance**0.5
    assert found.low == close(max(0, wins.mean() - half), abs=1e-9)
    assert found.high == close(min(1, wins.mean() + half), abs=1e-9)
    if len(set(score)) > 1:
        expected = stats.mannwhitneyu(one, other, method="asymptotic").pvalue
        assert found.p == close(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(RATINGS)
def test_the_area_below_the_roc_points_is_the_auc(rows):
    truth, score = [row[0] for row in rows], [row[1] for row in rows]
    if len(set(truth)) < 2:
        return
    x, y = np.transpose(statistics.roc_points(truth, score))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    area = ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum()
    assert statistics.auc(truth, score).auc == close(area, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=60))
def test_weighted_kappa_is_one_minus_observed_over_expected_squared_distance(rows):
    one, other = np.transpose(rows)
    found = statistics.weighted_kappa(one, other, 5)
    expected = np.mean([(a - b) ** 2 for a in one for b in other])
    if expected:
        assert found == close(1 - np.mean((one - other) ** 2) / expected, abs=1e-9)
    else:
        assert np.isnan(found)


def test_fleiss_kappa_counts_agreeing_pairs_of_readers():
    draw = np.random.default_rng(3)
    for _ in range(20):
        tiles, readers = draw.integers(3, 30), draw.integers(2, 7)
        calls = draw.integers(0, 3, (tiles, readers))
        counts = np.stack([(calls == category).sum(1) for category in range(3)], axis=1)
        pairs = list(itertools.combinations(range(readers), 2))
        agreement = np.mean([row[a] == row[b] for row in calls for a, b in pairs])
        expected = sum(np.mean(calls == category) ** 2 for category in range(3))
        value = (agreement - expected) / (1 - expected)
        assert statistics.fleiss_kappa(counts) == close(value, abs=1e-9)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    draw = np.random.default_rng(4)
    for _ in range(30):
        p = draw.uniform(0, 0.2, 6)
        adjusted = np.array(statistics.holm([*p, np.nan]))
        assert np.isnan(adjusted[-1])
        rejected = set()
        for step, number in enumerate(np.argsort(p)):
            if p[number] > 0.05 / (6 - step):
                break
            rejected.add(int(number))
        assert set(np.flatnonzero(adjusted[:-1] <= 0.05).tolist()) == rejected


def study_table(seed=0, readers=3, tiles=30):
    """Return a random export table of a study."""
    draw, rows = np.random.default_rng(seed), []
    sources = np.resize(["real", "gan", "rna-gan"], tiles)
    for reader in range(readers):
        for tile in range(tiles):
            own = int(np.clip(round(draw.normal(3.6 if sources[tile] == "real" else 2.4)), 1, 5))
            rows.append(
                ["study", f"R{reader}", reader, tile + 1, "single", tile, sources[tile],
                 ("lung", "brain")[tile // 3 % 2], "f", None, "", "", str(own), None, 1.5, 1, "t",
                 draw.integers(1, 3), draw.integers(1, 4)]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS, "staining", "nuclei"])


def test_the_study_numbers_are_those_of_scikit_learn_on_the_export_table():
    frame, study = study_table(), StudyConfig(scales=SCALES)
    numbers = study_numbers(frame, study)
    frame = frame.assign(confidence=frame.answer.astype(int), real=frame.source == "real")
    for reader in numbers["readers"]:
        own = frame[frame.name == reader["name"]]
        value = metrics.roc_auc_score(own.real, own.confidence)
        assert reader["auc"] == close(value, abs=1e-9)
    pooled = metrics.roc_auc_score(frame.real, frame.confidence)
    assert numbers["pooled"]["auc"] == close(pooled, abs=1e-9)
    mean = frame.groupby("tile").agg({"real": "first", "confidence": "mean"})
    value = metrics.roc_auc_score(mean.real, mean.confidence)
    assert numbers["mean_reader"]["auc"] == close(value, abs=1e-9)
    for pair in numbers["agreement"]["pairs"]:
        one, other = (frame[frame.name == pair[side]].confidence for side in ("one", "other"))
        value = metrics.cohen_kappa_score(one, other, weights="quadratic")
        assert pair["weighted_kappa"] == close(value, abs=1e-9)
    for cell in numbers["cells"]:
        part = frame[(frame.source == cell["source"]) & (frame.tissue == cell["tissue"])]
        assert cell["called_real"]["hits"] == (part.confidence >= 4).sum()
        assert cell["mean_confidence"] == close(part.confidence.mean(), abs=1e-9)
    scale = next(r for r in numbers["scales"] if (r["scale"], r["source"]) == ("nuclei", "gan"))
    means = frame.groupby(["source", "tile"]).nuclei.mean()
    p = stats.mannwhitneyu(means["real"], means["gan"], method="asymptotic").pvalue
    assert scale["p"] == close(p, abs=1e-9)


def test_a_study_without_answers_or_with_one_reader_has_numbers_all_the_same():
    study = StudyConfig(scales=SCALES)
    empty = study_numbers(study_table().iloc[:0], study)
    assert empty["answers"] == 0
    assert empty["pooled"]["auc"] is None
    one = study_numbers(study_table(readers=1), study)
    assert one["agreement"]["pairs"] == []
    assert one["agreement"]["fleiss_kappa_called_real"] is None
