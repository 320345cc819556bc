"""Can two sets of samples be told apart? Kernel distance and classifiers; 0.5 is a coin's AUC."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metrics.coverage import check_features, distance_blocks

FOLDS = 5
LEAST = 10  # samples a set below which nothing is said
TREES = 100
PENALTY = 0.01  # C of the logistic regression, for many more features than samples


def classifier_auc(
    real: np.ndarray, generated: np.ndarray, kind: str, seed: int = 0
) -> float | None:
    """Return the cross-validated AUC of telling real from generated; None for very small sets.

    0.5: indistinguishable for this classifier. Below 0.5, as where a generated set copies or
    leaves gaps, a sample is taken for the other kind more often than chance has it.

    Args:
        real, generated: features (N, F) and (M, F).
        kind: "neighbours" (k the square root of the training samples), "linear" (logistic
            regression; shifts of means) or "forest" (random forest; also spreads and shapes).
        seed: of folds and trees.

    Raises:
        ValueError: features that differ in number or are not finite.

    Source: Lopez-Paz and Oquab 2017 (arXiv 1610.06545), classifier two-sample test, section 3, and
    its k; the AUC in place of the accuracy needs no balanced sets.
    """
    check_features(real, generated)
    if min(len(real), len(generated)) < LEAST:
        return None
    features = np.concatenate([real, generated])
    is_generated = np.repeat([0, 1], [len(real), len(generated)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = _classifier(kind, int(len(features) * (1 - 1 / FOLDS)), seed)
    found = cross_val_predict(model, features, is_generated, cv=folds, method="predict_proba")
    return float(roc_auc_score(is_generated, found[:, 1]))


def gaussian_mmd(real: np.ndarray, generated: np.ndarray) -> dict[str, Any]:
    """Return the unbiased squared maximum mean discrepancy with a Gaussian kernel.

    Args:
        real, generated: features (N, F) and (M, F), at least 2 of each.

    Returns:
        `squared` (its expectation is 0 for one distribution, so it may be below 0), `kernel`
        ("gaussian") and `bandwidth`, the median distance over all pairs: k = exp(-d^2 / 2 h^2).

    Raises:
        ValueError: as `classifier_auc`.

    Source: Gretton et al. 2012 (JMLR 13), lemma 6 equation 3, and section 8 for the bandwidth.
    """
    check_features(real, generated)
    pooled = np.concatenate([real, generated]).astype(np.float64)
    squared = np.square(np.concatenate([block for _, block in distance_blocks(pooled, pooled)]))
    bandwidth = float(np.median(np.sqrt(squared[np.triu_indices(len(pooled), 1)])))
    kernel = np.exp(-squared / (2 * max(bandwidth, 1e-12) ** 2))
    count, other = len(real), len(generated)
    within = (kernel[:count, :count].sum() - count) / (count * (count - 1))
    within += (kernel[count:, count:].sum() - other) / (other * (other - 1))
    value = float(within - 2 * kernel[:count, count:].mean())
    return {"squared": value, "kernel": "gaussian", "bandwidth": bandwidth}


def transfer_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float | None:
    """Return the balanced accuracy on one set of a logistic regression trained on another.

    With generated samples as the first set: train on synthetic, test on real; as the second: train
    on real, test on synthetic. None unless the training set holds two classes of two samples or
    more, one of them tested.

    Source: Esteban et al. 2017 (arXiv 1706.02633), section 4.
    """
    names, counts = np.unique(train_labels, return_counts=True)
    classes = names[counts >= 2]  # of a single profile no classifier can learn
    learnt, known = np.isin(train_labels, classes), np.isin(test_labels, classes)
    if len(classes) < 2 or not known.any():
        return None
    fitted = _classifier("linear", 0, 0).fit(train[learnt], train_labels[learnt])
    right = fitted.predict(test[known]) == test_labels[known]
    labels = test_labels[known]
    return float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))


def _classifier(kind: str, count: int, seed: int) -> ClassifierMixin:
    if kind == "neighbours":
        return KNeighborsClassifier(max(1, int(count**0.5)))
    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    if kind == "forest":
        return RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed)
    raise ValueError(f"classifier {kind!r} is none of neighbours, linear, forest")
