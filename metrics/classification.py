"""Scores of a classifier on held-out tiles."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

SCORES = ("accuracy", "balanced_accuracy", "f1_macro", "auc_ovr")


def classification_scores(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, macro F1 and the macro one-versus-rest AUC.

    Args:
        targets: class numbers (N,), 0 to K - 1.
        probabilities: (N, K), each row summing to 1.

    Returns:
        the scores by name, each in [0, 1]; the AUC is NaN when a class is absent from the targets,
        and then balanced accuracy and F1 are over the classes that are present.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    present = np.unique(targets)
    auc = float("nan")
    if len(present) == classes:
        one_hot = np.eye(classes)[targets]
        auc = float(roc_auc_score(one_hot, probabilities, average="macro"))
    recalls = [float((predicted[targets == label] == label).mean()) for label in present]
    return {
        "accuracy": float(accuracy_score(targets, predicted)),
        "balanced_accuracy": float(np.mean(recalls)),
        "f1_macro": float(
            f1_score(targets, predicted, labels=present, average="macro", zero_division=0)
        ),
        "auc_ovr": auc,
    }


def confusion_counts(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts (K, K): rows true classes, columns predicted classes."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (targets, predicted), 1)
    return counts
