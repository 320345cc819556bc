"""The Frechet distance between Gaussians fitted to two sets of features, without sqrtm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNK = 4096  # samples that are centred at a time


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F), float64, with 1 / (N - 1) normalisation."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningMoments:
    """Mean and covariance of features that come in batches; the batches are not kept.

    Args:
        features: F.

    Source: Chan, Golub and LeVeque 1979, the merging of two samples' sums of squares.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self._mean = np.zeros(features)
        self._scatter = np.zeros((features, features))

    def add(self, batch: np.ndarray) -> None:
        """Take in features (N, F), N at least 1.

        Raises:
            ValueError: another number of features, or a value that is not finite.
        """
        if batch.ndim != 2 or batch.shape[1] != len(self._mean):
            raise ValueError(
                f"features {batch.shape} and (N, {len(self._mean)}) do not go together"
            )
        _check_finite(batch)
        batch = batch.astype(np.float64)
        mean = batch.mean(axis=0)
        shift, total = mean - self._mean, self.count + len(batch)
        centred = batch - mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self.count * len(batch) / total)
        self._mean = self._mean + shift * (len(batch) / total)
        self.count = total

    def moments(self) -> Moments:
        """Return mean and covariance of all batches.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"at least 2 samples are needed, found {self.count}")
        return Moments(self._mean, self._scatter / (self.count - 1))


def feature_moments(features: np.ndarray) -> Moments:
    """Return mean and covariance of features (N, F).

    Raises:
        ValueError: fewer than two samples, or a value that is not finite.
    """
    running = RunningMoments(features.shape[1])
    for start in range(0, len(features), CHUNK):
        running.add(features[start : start + CHUNK])
    return running.moments()


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With A and B the centred features over
    sqrt(N - 1), S1 = A^T A and S2 = B^T B. The non-zero eigenvalues of S1 S2 = A^T A B^T B are
    those of (A B^T)(A B^T)^T, so their square roots are the singular values of the N1 x N2 matrix
    A B^T, and the last trace is its nuclear norm. That path is taken when a set has fewer samples
    than features; otherwise the covariances are smaller than A B^T.

    Args:
        features1, features2: (N1, F) and (N2, F), computed in float64.

    Returns:
        the distance, >= 0, in squared feature units.

    Raises:
        ValueError: fewer than two samples, numbers of features that differ, or a value not finite.

    Source: Dowson and Landau 1982 (doi 10.1016/0047-259X(82)90077-X); Heusel et al. 2017
    (arXiv 1706.08500), equation 6.
    """
    if features1.shape[1:] != features2.shape[1:]:
        raise ValueError(f"features {features1.shape} and {features2.shape} cannot be compared")
    if min(len(features1), len(features2)) >= features1.shape[1]:
        return frechet_distance_of_moments(feature_moments(features1), feature_moments(features2))
    mean1, centred1 = _centre(features1)
    mean2, centred2 = _centre(features2)
    nuclear_norm = np.linalg.svd(centred1 @ centred2.T, compute_uv=False).sum()
    traces = np.square(centred1).sum() + np.square(centred2).sum()
    return _distance(mean1, mean2, traces, nuclear_norm)


def frechet_distance_of_moments(moments1: Moments, moments2: Moments) -> float:
    """Return the squared Frechet distance between two Gaussians given by their moments.

    tr (S1 S2)^(1/2) is the sum of the square roots of the eigenvalues of R S2 R with R = S1^(1/2):
    two symmetric problems, real whatever the rank. Eigenvalues within rounding of 0 count as 0.

    Raises:
        ValueError: sizes differ or a value is not finite.

    Source: as `frechet_distance`.
    """
    if moments1.covariance.shape != moments2.covariance.shape:
        raise ValueError("moments of different numbers of features cannot be compared")
    for moments in (moments1, moments2):
        _check_finite(moments.mean)
        _check_finite(moments.covariance)
    values, vectors = np.linalg.eigh(moments1.covariance)
    root = (vectors * np.sqrt(_without_rounding(values))) @ vectors.T
    product = root @ moments2.covariance @ root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    nuclear_norm = np.sqrt(_without_rounding(values)).sum()
    traces = np.trace(moments1.covariance) + np.trace(moments2.covariance)
    return _distance(moments1.mean, moments2.mean, traces, nuclear_norm)


def _distance(mean1: np.ndarray, mean2: np.ndarray, traces: float, nuclear_norm: float) -> float:
    # Equal sets leave a difference of rounding size, which may be below zero.
    return max(0.0, float(np.square(mean1 - mean2).sum() + traces - 2 * nuclear_norm))


def _centre(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and A, the centred features over sqrt(N - 1): A^T A is the covariance."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"at least 2 samples are needed, found features of shape {features.shape}")
    _check_finite(features)
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("a feature is not a finite number")


def _without_rounding(eigenvalues: np.ndarray) -> np.ndarray:
    smallest = eigenvalues.max() * len(eigenvalues) * np.finfo(np.float64).eps
    return np.where(eigenvalues > smallest, eigenvalues, 0.0)
