"""FID and KID of two sets over several draws, with what a reader must know beside the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance
from runtime.seeds import numpy_generator

FULL_RANK_FROM = 2048  # the FID network's features: fewer tiles leave the covariance without rank
KID_SUBSETS = 100  # Binkowski et al. 2018 (arXiv 1801.01401), section 4


def compare_draws(
    draws1: Sequence[np.ndarray], draws2: Sequence[np.ndarray], seed: int
) -> dict[str, Any]:
    """Return FID and KID of every pair of draws as plain values, ready for JSON.

    Args:
        draws1, draws2: features (N, F) of each draw of set 1 and of set 2.
        seed: of the KID's subsets.

    Returns:
        `tiles` (of the smallest draw of each set), `fid` and `kid`, each with `draws` (the list),
        `mean` and `sd` (over draws, N - 1; None for a single draw); the KID also with the standard
        deviation over subsets of each draw and the subsets' size.

    Raises:
        ValueError: as `frechet_distance`.
    """
    frechet = [frechet_distance(*pair) for pair in zip(draws1, draws2, strict=True)]
    kernel = [
        kernel_distance(*pair, numpy_generator(seed, "kid", number), KID_SUBSETS)
        for number, pair in enumerate(zip(draws1, draws2, strict=True))
    ]
    return {
        "tiles": [min(len(features) for features in draws) for draws in (draws1, draws2)],
        "fid": _summary(frechet),
        "kid": _summary([value.mean for value in kernel])
        | {
            "subset_sd": [value.sd for value in kernel],
            "subset_size": min(value.subset_size for value in kernel),
        },
    }


def comparison_notes(tiles: Sequence[int], labels: Sequence[str], sample_size: int) -> list[str]:
    """Return what a reader must know of the sample sizes, one plain sentence each.

    Args:
        tiles: tiles per draw of set 1 and set 2.
        labels: names of the sets.
        sample_size: tiles per draw that were asked for.
    """
    notes = [
        f"{label}: {count} tiles in all, {sample_size} asked for; every draw uses them all"
        for label, count in zip(labels, tiles, strict=True)
        if count < sample_size
    ]
    if min(tiles) < FULL_RANK_FROM:
        notes.append(
            f"fewer than {FULL_RANK_FROM} tiles: the FID is too high, by more the fewer tiles there"
            " are; compare it only with an FID of as many tiles (the KID has no such bias)"
        )
    return notes


def _summary(values: list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"draws": values, "mean": float(np.mean(values)), "sd": sd}
