"""Does a generator repeat its training tiles? Nearest training tiles, and held-out ones beside."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from metrics.coverage import check_features, distance_blocks


class Nearest(NamedTuple):
    """For each of N tiles the number of its nearest tile of another set, and the distance, (N,)."""

    numbers: np.ndarray
    distances: np.ndarray


def nearest_tiles(features: np.ndarray, among: np.ndarray) -> Nearest:
    """Return the nearest of the tiles `among` (M, F) for each of the tiles (N, F).

    Raises:
        ValueError: numbers of features that differ, or a value that is not finite.
    """
    check_features(features, among)
    numbers, distances = np.empty(len(features), np.int64), np.empty(len(features))
    for rows, block in distance_blocks(features, among):
        numbers[rows] = block.argmin(axis=1)
        distances[rows] = block.min(axis=1)
    return Nearest(numbers, distances)


def copying_scores(
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    generator: np.random.Generator,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return whether generated tiles lie closer to training tiles than to unseen real ones.

    As many training as held-out tiles are compared, since the nearest of more tiles is nearer.
    Without copying, a generated tile's nearest neighbour is a training tile as often as a held-out
    one; a share well above a half says copying, or that held-out donors differ.

    Args:
        generated, training, held_out: features (N, F), (M, F) and (K, F).
        generator: draws the training tiles and the resamples of the interval.
        resamples: of the generated tiles, for the interval.

    Returns:
        `closer_to_training` (share) with `interval` (95 %, bootstrap over generated tiles);
        quartiles of the distance to the nearest training tile, for generated tiles and for held-out
        real ones (all training tiles); `tiles` compared on each side.

    Raises:
        ValueError: as `nearest_tiles`.

    Source: the comparison of Meehan et al. 2020 (arXiv 2004.05675), as a share.
    """
    count = min(len(training), len(held_out))
    some_training = training[generator.permutation(len(training))[:count]]
    some_held_out = held_out[generator.permutation(len(held_out))[:count]]
    seen = nearest_tiles(generated, some_training).distances
    unseen = nearest_tiles(generated, some_held_out).distances
    closer = (seen < unseen) + 0.5 * (seen == unseen)
    drawn = generator.choice(closer, (resamples, len(closer))).mean(axis=1)
    return {
        "closer_to_training": float(closer.mean()),
        "interval": np.percentile(drawn, [2.5, 97.5]).tolist(),
        "tiles": count,
        "generated_to_training": _quartiles(nearest_tiles(generated, training).distances),
        "held_out_to_training": _quartiles(nearest_tiles(held_out, training).distances),
    }


def _quartiles(values: np.ndarray) -> list[float]:
    return np.percentile(values, [25, 50, 75]).tolist()
