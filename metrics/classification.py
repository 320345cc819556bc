"""Scores of a classifier on held-out tiles, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

SCORES = ("accuracy", "balanced_accuracy", "f1_macro", "auc_ovr")
RESAMPLES = 1000
LEVEL = 0.95


def classification_scores(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, macro F1 and the macro one-versus-rest AUC.

    Args:
        targets: class numbers (N,), 0 to K - 1.
        probabilities: (N, K), each row summing to 1.

    Returns:
        the scores by name, each in [0, 1]; the AUC is NaN when a class is absent from the targets,
        and then balanced accuracy and F1 are over the classes that are present.

    Source: the definitions of scikit-learn's scores of these names; AUC by ranks: Hanley and
    McNeil 1982.
    """
    classes = probabilities.shape[1]
    counts = confusion_counts(targets, probabilities.argmax(axis=1), classes)
    true, called, hits = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    present = true > 0
    auc = float("nan")
    if present.all() and classes > 1:
        ranks = rankdata(probabilities, axis=0)  # (N, K)
        own = ranks[np.arange(len(targets)), targets]
        sums = np.bincount(targets, own, classes)
        areas = (sums - true * (true + 1) / 2) / (true * (len(targets) - true))
        auc = float(areas.mean())
    return {
        "accuracy": float(hits.sum() / len(targets)),
        "balanced_accuracy": float((hits[present] / true[present]).mean()),
        "f1_macro": float((2 * hits[present] / (true + called)[present]).mean()),
        "auc_ovr": auc,
    }


def score_resamples(
    targets: np.ndarray,
    probabilities: np.ndarray,
    units: Sequence[object],
    folds: np.ndarray,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Return the scores (resamples, len(SCORES)), mean over folds, of resamples of whole units.

    The probabilities of two folds come from two networks, so that only those of a fold are ranked
    together. Generators of one seed draw the same units, so that the rows of two classifiers of
    the same test images are paired.

    Args:
        targets, probabilities: as `classification_scores`.
        units: (N,), what is independent of each other: patient, original image, else the image.
        folds: (N,), fold of each row.
        generator: draws units with replacement.
    """
    _, unit_of = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    count = unit_of.max() + 1
    found = np.empty((resamples, len(SCORES)))
    for number, drawn in enumerate(generator.integers(count, size=(resamples, count))):
        times = np.bincount(drawn, minlength=count)[unit_of]  # (N,)
        scores = []
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            chosen = np.repeat(rows, times[rows])
            if len(chosen):
                one = classification_scores(targets[chosen], probabilities[chosen])
                scores.append([one[name] for name in SCORES])
        scored = np.array(scores)
        known = np.isfinite(scored).sum(axis=0)
        found[number] = np.where(known, np.nansum(scored, axis=0) / np.maximum(known, 1), np.nan)
    return found


def score_intervals(resampled: np.ndarray) -> dict[str, list[float] | None]:
    """Return the 95 % percentile interval of each score from its resamples (R, len(SCORES)).

    None where fewer than half of the resamples could be scored.

    Source: Efron 1979, percentile bootstrap over units.
    """
    ends = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    return {
        name: np.nanpercentile(values, ends).tolist() if np.isfinite(values).mean() >= 0.5 else None
        for name, values in zip(SCORES, resampled.T, strict=True)
    }


def confusion_counts(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts (K, K): rows true classes, columns predicted classes."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    return counts
