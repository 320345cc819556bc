"""Statistics of games and reader studies, in closed form or from SciPy and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score, roc_curve

LEVEL = 0.95


class Share(NamedTuple):
    """A share with its exact (Clopper-Pearson) 95 % interval; NaN without trials."""

    hits: int
    trials: int
    share: float
    low: float
    high: float


class Auc(NamedTuple):
    """Area under the ROC curve with DeLong's 95 % interval and the Mann-Whitney p value.

    `p` tests against 0.5, two-sided, normal approximation corrected for ties.
    """

    auc: float
    low: float
    high: float
    p: float
    positives: int
    negatives: int


def exact_share(hits: int, trials: int) -> Share:
    """Return hits of trials as a share with its exact 95 % interval.

    Source: Clopper and Pearson 1934.
    """
    if not trials:
        return Share(hits, trials, np.nan, np.nan, np.nan)
    interval = stats.binomtest(hits, trials).proportion_ci(LEVEL, method="exact")
    return Share(hits, trials, hits / trials, float(interval.low), float(interval.high))


def chance_p(hits: int, trials: int) -> float:
    """Return the exact two-sided p value of hits of trials against one half; NaN without trials."""
    return float(stats.binomtest(hits, trials, 0.5).pvalue) if trials else np.nan


def auc(truth: Sequence[bool], score: Sequence[float]) -> Auc:
    """Return the area under the ROC curve of scores.

    Args:
        truth: whether each tile is real.
        score: higher means more surely real.

    Returns:
        NaN throughout unless both kinds are there.

    Source: DeLong, DeLong and Clarke-Pearson 1988 for the variance.
    """
    truth, score = np.asarray(truth, bool), np.asarray(score, float)
    positive, negative = score[truth], score[~truth]
    counts = len(positive), len(negative)
    if not all(counts):
        return Auc(np.nan, np.nan, np.nan, np.nan, *counts)
    value = float(roc_auc_score(truth, score))
    low = high = np.nan
    if min(counts) > 1:
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        variance = wins.mean(1).var(ddof=1) / counts[0] + wins.mean(0).var(ddof=1) / counts[1]
        half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
        low, high = max(0.0, value - half), min(1.0, value + half)
    p = np.nan
    if len(np.unique(score)) > 1:
        p = stats.mannwhitneyu(positive, negative, method="asymptotic").pvalue
    return Auc(value, float(low), float(high), float(p), *counts)


def roc_points(truth: Sequence[bool], score: Sequence[float]) -> list[tuple[float, float]]:
    """Return (1 - specificity, sensitivity) for every cut of the scores, from (0, 0) to (1, 1)."""
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    return [(float(x), float(y)) for x, y in zip(false, true, strict=True)]


def weighted_kappa(one: Sequence[int], other: Sequence[int], levels: int) -> float:
    """Return Cohen's kappa with quadratic weights of two readers' ratings 1 to `levels`.

    NaN when there are no tiles in common, or both gave one and the same rating throughout.
    """
    if not len(one) or len({*one, *other}) < 2:
        return np.nan
    labels = list(range(1, levels + 1))
    return float(cohen_kappa_score(one, other, labels=labels, weights="quadratic"))


def fleiss_kappa(counts: np.ndarray) -> float:
    """Return Fleiss' kappa of several readers.

    Args:
        counts: (tiles, categories), how many readers chose each; every tile by as many readers,
            two or more.

    Returns:
        NaN without tiles, or when all answers are one and the same category.

    Source: Fleiss 1971.
    """
    counts = np.asarray(counts, float)
    if not counts.size:
        return np.nan
    readers = counts.sum(1)
    if readers[0] < 2 or (readers != readers[0]).any():
        raise ValueError("each tile needs answers of the same number of readers, two or more")
    agreement = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    expected = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((agreement.mean() - expected) / (1 - expected)) if expected < 1 else np.nan


def rank_difference_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided Mann-Whitney p value of two groups of ratings; NaN where undefined."""
    if not len(one) or not len(other) or len({*one, *other}) < 2:
        return np.nan
    return float(stats.mannwhitneyu(one, other, method="asymptotic").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, step-down; NaN stays NaN and does not count.

    Source: Holm 1979.
    """
    p = np.asarray(p, float)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted.tolist()
