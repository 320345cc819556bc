"""Means with intervals, and whether two models differ by more than the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t, ttest_ind, ttest_rel

LEVEL = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return the values as `draws`, with `mean`, `sd` (N - 1) and `interval` of the mean.

    The interval is Student's at 95 %; it and the deviation are None for a single value.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"draws": list(values), "mean": mean, "sd": None, "interval": None}
    sd = float(np.std(values, ddof=1))
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * sd / count**0.5
    return {
        "draws": list(values),
        "mean": mean,
        "sd": sd,
        "interval": [mean - reach, mean + reach],
    }


def difference(
    values1: Sequence[float], values2: Sequence[float], paired: bool
) -> dict[str, Any] | None:
    """Return mean 1 minus mean 2 with its interval, and whether that is larger than the noise.

    Args:
        values1, values2: scores of two models.
        paired: value k of both belongs to the same real tiles (Student's paired interval);
            otherwise the values are independent replicates (Welch's).

    Returns:
        `difference`, `interval` (95 %), `larger_than_noise` (the interval leaves 0 out), `paired`;
        None for fewer than two values a model.

    Source: Student 1908; Welch 1947.
    """
    if min(len(values1), len(values2)) < 2:
        return None
    mean = float(np.mean(values1) - np.mean(values2))
    spread = np.ptp(np.subtract(values1, values2)) if paired else np.ptp(values1) + np.ptp(values2)
    if spread == 0:  # no noise to speak of; the tests divide by it
        low = high = mean
    else:
        test = (
            ttest_rel(values1, values2) if paired else ttest_ind(values1, values2, equal_var=False)
        )
        low, high = (float(end) for end in test.confidence_interval(LEVEL))
    return {
        "difference": mean,
        "interval": [low, high],
        "larger_than_noise": bool(low > 0 or high < 0),
        "paired": paired,
    }
