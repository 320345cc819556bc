"""Expression read back from tiles: how well features of generated tiles predict the profile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Ridge penalties that are tried, on standardised features.
ALPHAS = tuple(10.0**power for power in range(-1, 7))
GENES = 50  # most abundant genes that the median is over
RESAMPLES = 1000


def fit_expression_reader(features: np.ndarray, log_expression: np.ndarray) -> Pipeline:
    """Return a ridge regression from features to expression, fitted on real tiles.

    Its penalty is the one of `ALPHAS` with the smallest leave-one-out error over all genes.

    Args:
        features: (N, F) of real training tiles, or means over a sample's tiles.
        log_expression: (N, G) of the same samples, logged.

    Raises:
        ValueError: fewer than 3 samples, numbers of samples that differ, or a value not finite.
    """
    for values in (features, log_expression):
        if values.ndim != 2 or len(values) < 3 or len(values) != len(features):
            raise ValueError(
                f"features {features.shape} and expression {log_expression.shape} of at least 3"
                " common samples are needed"
            )
        if not np.isfinite(values).all():
            raise ValueError("a feature or an expression value is not a finite number")
    reader = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))
    return reader.fit(features.astype(np.float64), log_expression.astype(np.float64))


def read_expression(reader: Pipeline, features: np.ndarray) -> np.ndarray:
    """Return the log expression (M, G) that a reader sees in features (M, F)."""
    # RidgeCV drops the axis of a single gene.
    return reader.predict(features.astype(np.float64)).reshape(len(features), -1)


def gene_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Pearson's r over samples for each gene, (G,); NaN where either side is constant.

    Args:
        predicted, measured: (M, G), M at least 2.
    """
    centred = [
        values - values.mean(axis=0)
        for values in (predicted.astype(np.float64), measured.astype(np.float64))
    ]
    # The centred values of a constant are rounding, not zero.
    tiny = [
        np.linalg.norm(values, axis=0) <= 1e-12 * np.linalg.norm(whole, axis=0)
        for values, whole in zip(centred, (predicted, measured), strict=True)
    ]
    norms = np.linalg.norm(centred[0], axis=0) * np.linalg.norm(centred[1], axis=0)
    norms[tiny[0] | tiny[1]] = np.nan
    return (centred[0] * centred[1]).sum(axis=0) / norms


def expression_recovery(
    train_features: np.ndarray,
    train_log_expression: np.ndarray,
    test_features: np.ndarray,
    test_log_expression: np.ndarray,
) -> np.ndarray:
    """Return, per gene, Pearson's r between expression and what is read from test tiles, (G,).

    Args:
        train_features, train_log_expression: (N, F) and (N, G) of real training tiles.
        test_features: (M, F) of real held-out or of generated tiles.
        test_log_expression: (M, G): of the held-out samples, or the profiles that were given.

    Returns:
        r in [-1, 1]; NaN for a gene that is constant over the test samples or in the prediction.

    Raises:
        ValueError: as `fit_expression_reader`.
    """
    reader = fit_expression_reader(train_features, train_log_expression)
    return gene_correlations(read_expression(reader, test_features), test_log_expression)


def log_per_million(expression: np.ndarray) -> np.ndarray:
    """Return log1p of expression (N, G) >= 0 scaled to a million per sample, float64."""
    totals = expression.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.log1p(expression * (1e6 / np.where(totals > 0, totals, 1)))


def most_abundant(log_expression: np.ndarray, count: int = GENES) -> np.ndarray:
    """Return the columns of the `count` genes of highest mean, among (N, G), highest first."""
    return np.argsort(-log_expression.mean(axis=0), kind="stable")[:count]


def recovery_scores(
    predicted: Mapping[str, np.ndarray],
    measured: np.ndarray,
    generator: np.random.Generator,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Return, per condition, the median r over genes with its bootstrap interval.

    Conditions are, for instance, real held-out tiles (the ceiling), generated tiles, and the
    controls: tiles generated from shuffled and from zero profiles.

    Args:
        predicted: name of a condition to the expression read from its tiles, (M, G).
        measured: (M, G), the expression that belongs to the M samples.
        generator: draws the resamples, the same for every condition.
        groups: slide or donor of each sample: resampled whole; None: samples are independent.
        resamples: how many.

    Returns:
        for each condition `median_r`, `interval` (95 %, percentiles) and `genes` that vary; None
        where none does.
    """
    labels = np.unique(np.arange(len(measured)) if groups is None else groups, return_inverse=True)
    members = [np.flatnonzero(labels[1] == number) for number in range(len(labels[0]))]
    samples = [
        np.concatenate([members[k] for k in generator.integers(len(members), size=len(members))])
        for _ in range(resamples)
    ]
    scores = {}
    for name, values in predicted.items():
        r = gene_correlations(values, measured)
        if np.isnan(r).all():
            scores[name] = {"median_r": None, "interval": None, "genes": 0}
            continue
        drawn = np.array([_median(gene_correlations(values[s], measured[s])) for s in samples])
        scores[name] = {
            "median_r": _median(r),
            "interval": np.nanpercentile(drawn, [2.5, 97.5]).tolist(),
            "genes": int(np.isfinite(r).sum()),
        }
    return scores


def _median(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        # A resample may hold one sample only, again and again: no gene varies in it.
        warnings.filterwarnings("ignore", message="All-NaN slice")
        return float(np.nanmedian(values))
