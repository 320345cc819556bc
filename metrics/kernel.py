"""The kernel distance (KID): an unbiased squared maximum mean discrepancy between feature sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WHOLE_KERNEL = 8192  # samples of both sets up to which the kernel is computed once for all subsets


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets, with the number and size of the subsets."""

    mean: float
    sd: float
    subsets: int
    subset_size: int


def polynomial_kernel(features1: np.ndarray, features2: np.ndarray) -> np.ndarray:
    """Return k(x, y) = (x . y / F + 1)^3 for features (N1, F) and (N2, F): float64 (N1, N2).

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4: degree 3, gamma 1 / F, coef0 1.
    """
    products = features1.astype(np.float64) @ features2.astype(np.float64).T
    return (products / features1.shape[1] + 1) ** 3


def polynomial_mmd(features1: np.ndarray, features2: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy with the polynomial kernel.

    Its expectation is 0 for two samples of one distribution, so single values may be below 0.

    Args:
        features1, features2: (N1, F) and (N2, F).

    Raises:
        ValueError: fewer than two samples, numbers of features that differ, or a value not finite.

    Source: Gretton et al. 2012, lemma 6, equation 3.
    """
    _check(features1, features2)
    return _mmd(
        polynomial_kernel(features1, features1),
        polynomial_kernel(features2, features2),
        polynomial_kernel(features1, features2),
    )


def kernel_distance(
    features1: np.ndarray,
    features2: np.ndarray,
    generator: np.random.Generator,
    subsets: int = 100,
    subset_size: int | None = None,
) -> KernelDistance:
    """Return the kernel distance over random subsets: its mean and how far subsets differ.

    Args:
        features1, features2: (N1, F) and (N2, F).
        generator: draws the subsets, without replacement within one.
        subsets: how many.
        subset_size: samples of each set per subset, 2 to min(N1, N2); None: half of the smaller
            set, at most 1000. Subsets as large as the sets would be all the same.

    Raises:
        ValueError: as `polynomial_mmd`, or a subset larger than a set.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4 (100 subsets of 1000 there).
    """
    _check(features1, features2)
    count1, count2 = len(features1), len(features2)
    size = subset_size or max(2, min(1000, min(count1, count2) // 2))
    if not 2 <= size <= min(count1, count2):
        raise ValueError(f"subsets of {size} cannot be drawn from {count1} and {count2} samples")
    kernels = None
    if max(count1, count2) <= WHOLE_KERNEL:
        kernels = (
            polynomial_kernel(features1, features1),
            polynomial_kernel(features2, features2),
            polynomial_kernel(features1, features2),
        )
    values = []
    for _ in range(subsets):
        rows1 = generator.choice(count1, size, replace=False)
        rows2 = generator.choice(count2, size, replace=False)
        if kernels is None:
            values.append(polynomial_mmd(features1[rows1], features2[rows2]))
        else:
            parts = zip(kernels, (rows1, rows2, rows1), (rows1, rows2, rows2), strict=True)
            values.append(_mmd(*(kernel[np.ix_(rows, columns)] for kernel, rows, columns in parts)))
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def _mmd(within1: np.ndarray, within2: np.ndarray, across: np.ndarray) -> float:
    count1, count2 = across.shape
    mean1 = (within1.sum() - np.trace(within1)) / (count1 * (count1 - 1))
    mean2 = (within2.sum() - np.trace(within2)) / (count2 * (count2 - 1))
    return float(mean1 + mean2 - 2 * across.mean())


def _check(features1: np.ndarray, features2: np.ndarray) -> None:
    for features in (features1, features2):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"at least 2 samples are needed, found shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("a feature is not a finite number")
    if features1.shape[1] != features2.shape[1]:
        raise ValueError(f"features {features1.shape} and {features2.shape} cannot be compared")
