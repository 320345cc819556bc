"""Precision, recall, density and coverage: fidelity and diversity apart, by nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NEIGHBOURS_PRECISION = 3  # Kynkaanniemi et al. 2019, section 3
NEIGHBOURS_DENSITY = 5  # Naeem et al. 2020, section 4
ROWS = 2048  # rows of a distance matrix that are held at a time


class Coverage(NamedTuple):
    """Shares of tiles, in [0, 1]; the density may exceed 1.

    precision: of generated tiles within the real ones. recall: of real tiles within the generated
    ones. density: real neighbourhoods around a generated tile, over the number expected. coverage:
    of real tiles with a generated one in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def coverage_metrics(
    real: np.ndarray,
    generated: np.ndarray,
    neighbours: int = NEIGHBOURS_PRECISION,
    density_neighbours: int = NEIGHBOURS_DENSITY,
) -> Coverage | None:
    """Return precision, recall, density and coverage, or None with too few tiles for neighbours.

    A tile's neighbourhood is the ball that reaches its k-th nearest tile of the same set.

    Args:
        real, generated: features (N, F) and (M, F).
        neighbours: k of precision and recall; a tile on the ball's edge is in.
        density_neighbours: k of density and coverage; a tile on the edge is out.

    Raises:
        ValueError: numbers of features that differ, or a value that is not finite.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2; Naeem et al. 2020
    (arXiv 2002.09797), equations 3 and 5.
    """
    check_features(real, generated)
    if min(len(real), len(generated)) <= max(neighbours, density_neighbours):
        return None
    radii, wide_radii = _radii(real, (neighbours, density_neighbours))
    (generated_radii,) = _radii(generated, (neighbours,))
    precise = np.zeros(len(generated), bool)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    inside = 0
    for rows, distances in distance_blocks(real, generated):
        precise |= (distances <= radii[rows, None]).any(axis=0)
        recalled[rows] = (distances <= generated_radii).any(axis=1)
        within = distances < wide_radii[rows, None]
        inside += int(within.sum())
        covered[rows] = within.any(axis=1)
    density = inside / (density_neighbours * len(generated))
    return Coverage(float(precise.mean()), float(recalled.mean()), density, float(covered.mean()))


def distance_blocks(
    features1: np.ndarray, features2: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield Euclidean distances float64 (rows, N2), with the rows of set 1 that they belong to.

    Distances within rounding of 0, as of equal tiles, are 0.
    """
    shift = features1.mean(axis=0, dtype=np.float64)
    one, two = features1 - shift, features2 - shift
    squares1, squares2 = (np.square(features).sum(axis=1) for features in (one, two))
    for start in range(0, len(one), ROWS):
        rows = slice(start, min(start + ROWS, len(one)))
        sums = squares1[rows, None] + squares2
        squared = sums - 2 * one[rows] @ two.T
        yield rows, np.sqrt(np.where(squared > 1e-12 * sums, squared, 0.0))


def check_features(features1: np.ndarray, features2: np.ndarray) -> None:
    """Raise a ValueError unless two sets of features are finite and equally many per tile."""
    if features1.ndim != 2 or features1.shape[1:] != features2.shape[1:]:
        raise ValueError(f"features {features1.shape} and {features2.shape} cannot be compared")
    if not (np.isfinite(features1).all() and np.isfinite(features2).all()):
        raise ValueError("a feature is not a finite number")


def _radii(features: np.ndarray, neighbours: tuple[int, ...]) -> list[np.ndarray]:
    """Return, for each k, the distance of every tile to its k-th nearest other one, (N,)."""
    radii = [np.empty(len(features)) for _ in neighbours]
    for rows, distances in distance_blocks(features, features):
        for radius, k in zip(radii, neighbours, strict=True):
            radius[rows] = np.partition(distances, k, axis=1)[:, k]  # place 0 is the tile itself
    return radii
