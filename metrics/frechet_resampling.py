"""How certain a Frechet distance is: bootstrap interval, and the value extrapolated to any N."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import linregress

from metrics.frechet import frechet_distance

RESAMPLES = 100
# Extrapolation: subsample sizes, subsamples of each, and tiles used at most (a matter of time).
SIZES, REPEATS, LARGEST = 8, 3, 1000


class Interval(NamedTuple):
    """A 95 % interval and the standard error it comes from."""

    low: float
    high: float
    standard_error: float


class Extrapolated(NamedTuple):
    """The distance at 1 / N = 0, its standard error of the fit, and the sizes fitted."""

    value: float
    standard_error: float
    sizes: list[int]


class _Products:
    """Scalar products of two sets of features, from which any resample's distance follows.

    With weights w of the samples that occur in a resample (how often, over their number n), the
    centred features of set 1 are sqrt(w) (I - 1 w^T) X: repeated samples need no second row.
    """

    def __init__(self, features1: np.ndarray, features2: np.ndarray) -> None:
        # The distance ignores a common shift, and small numbers keep more digits.
        shift = features1.mean(axis=0, dtype=np.float64)
        one, two = (features.astype(np.float64) - shift for features in (features1, features2))
        self.within1, self.within2, self.across = one @ one.T, two @ two.T, one @ two.T

    def distance(self, rows1: np.ndarray, rows2: np.ndarray) -> float:
        unique1, counts1 = np.unique(rows1, return_counts=True)
        unique2, counts2 = np.unique(rows2, return_counts=True)
        weights1, weights2 = counts1 / len(rows1), counts2 / len(rows2)
        across = self.across[np.ix_(unique1, unique2)]
        within1 = self.within1[np.ix_(unique1, unique1)]
        within2 = self.within2[np.ix_(unique2, unique2)]
        mean11 = weights1 @ within1 @ weights1
        mean22 = weights2 @ within2 @ weights2
        mean12 = weights1 @ across @ weights2
        centred = across - weights1 @ across - (across @ weights2)[:, None] + mean12
        norm1, norm2 = len(rows1) / (len(rows1) - 1), len(rows2) / (len(rows2) - 1)
        scale1, scale2 = np.sqrt(weights1 * norm1), np.sqrt(weights2 * norm2)
        product = scale1[:, None] * centred * scale2
        # Singular values by the square's eigenvalues: half the time, and good to 1e-8 of the first.
        squares = np.linalg.eigvalsh(product @ product.T)
        nuclear = np.sqrt(np.maximum(squares, 0)).sum()
        trace1 = norm1 * (weights1 @ np.diag(within1) - mean11)
        trace2 = norm2 * (weights2 @ np.diag(within2) - mean22)
        return float(mean11 + mean22 - 2 * mean12 + trace1 + trace2 - 2 * nuclear)


def frechet_interval(
    features1: np.ndarray,
    features2: np.ndarray,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a bootstrap interval of the Frechet distance at this N.

    Tiles are resampled with replacement in both sets. Repeated tiles raise the distance as fewer
    tiles would, so the resamples' spread is used and not their level: the interval is the distance
    plus and minus 1.96 standard deviations of the resamples. It is about the mean distance of sets
    of this size, bias by the size included.

    Args:
        features1, features2: (N1, F) and (N2, F).
        generator: draws the resamples.
        resamples: how many, at least 2.

    Raises:
        ValueError: as `frechet_distance`.

    Source: Efron 1979 (doi 10.1214/aos/1176344552), normal interval.
    """
    value = frechet_distance(features1, features2)
    products = _Products(features1, features2)
    count1, count2 = len(features1), len(features2)
    drawn = [
        products.distance(
            generator.integers(count1, size=count1), generator.integers(count2, size=count2)
        )
        for _ in range(resamples)
    ]
    error = float(np.std(drawn, ddof=1))
    reach = 1.96 * error
    return Interval(max(0.0, value - reach), value + reach, error)


def frechet_infinity(
    features1: np.ndarray, features2: np.ndarray, generator: np.random.Generator
) -> Extrapolated | None:
    """Return the Frechet distance extrapolated to endless sets, or None below 16 samples a set.

    The distance is nearly linear in 1 / N where N exceeds the rank of the features; a line through
    the distances of subsamples of several sizes, a quarter up to all, meets 1 / N = 0 at the
    value. With fewer tiles than features the curve is not yet straight, and the value is still too
    high, though by much less.

    Args:
        features1, features2: (N1, F) and (N2, F); at most 1,000 of each are used.
        generator: draws the subsamples, without replacement.

    Raises:
        ValueError: as `frechet_distance`.

    Source: Chong and Forsyth 2020 (arXiv 1911.07023), section 3.
    """
    largest = min(len(features1), len(features2), LARGEST)
    if largest < 16:
        return None
    rows1 = generator.choice(len(features1), largest, replace=False)
    rows2 = generator.choice(len(features2), largest, replace=False)
    frechet_distance(features1[rows1[:2]], features2[rows2[:2]])  # the sets' fitness is checked
    products = _Products(features1[rows1], features2[rows2])
    sizes = np.unique(np.linspace(largest // 4, largest, SIZES).astype(int))
    points = [
        (
            1 / size,
            products.distance(
                generator.choice(largest, size, replace=False),
                generator.choice(largest, size, replace=False),
            ),
        )
        for size in sizes
        for _ in range(REPEATS if size < largest else 1)
    ]
    fit = linregress(*zip(*points, strict=True))
    return Extrapolated(float(fit.intercept), float(fit.intercept_stderr), sizes.tolist())
