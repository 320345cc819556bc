"""Everything that is said of two sets over several draws, with what a reader must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metrics.coverage import Coverage, coverage_metrics
from metrics.frechet import frechet_distance
from metrics.frechet_resampling import RESAMPLES, frechet_infinity, frechet_interval
from metrics.kernel import kernel_distance
from metrics.statistics import summary
from runtime.seeds import numpy_generator

FULL_RANK_FROM = 2048  # the FID network's features: fewer tiles leave the covariance without rank
KID_SUBSETS = 100  # Binkowski et al. 2018 (arXiv 1801.01401), section 4
BOOTSTRAP_LARGEST = 8192  # tiles of a draw up to which its products fit in memory


def compare_draws(
    draws1: Sequence[np.ndarray],
    draws2: Sequence[np.ndarray],
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return FID, KID and coverage of every pair of draws as plain values, ready for JSON.

    Args:
        draws1, draws2: features (N, F) of each draw of set 1, the reference of precision and the
            others, and of set 2.
        seed: of subsets and resamples.
        resamples: of the FID's bootstrap interval; 0 leaves it and FID-infinity out.

    Returns:
        `tiles` (of the smallest draw of each set), then `fid`, `kid`, `precision`, `recall`,
        `density` and `coverage`, each with `draws` (the list), `mean`, `sd` (over draws, N - 1) and
        `interval` (of the mean); None where there are too few tiles. The KID also with the standard
        deviation over subsets of each draw and their size, the FID with the `bootstrap` of its
        first draw and `infinity`, extrapolated from all tiles of all draws.

    Raises:
        ValueError: as `frechet_distance`.
    """
    pairs = list(zip(draws1, draws2, strict=True))
    kernel = [
        kernel_distance(*pair, numpy_generator(seed, "kid", number), KID_SUBSETS)
        for number, pair in enumerate(pairs)
    ]
    result: dict[str, Any] = {
        "tiles": [min(len(features) for features in draws) for draws in (draws1, draws2)],
        "fid": summary([frechet_distance(*pair) for pair in pairs]),
        "kid": summary([value.mean for value in kernel])
        | {
            "subset_sd": [value.sd for value in kernel],
            "subset_size": min(value.subset_size for value in kernel),
        },
    }
    covered = [coverage_metrics(*pair) for pair in pairs]
    for name in Coverage._fields:
        values = [getattr(value, name) for value in covered if value]
        result[name] = summary(values) if values else None
    if resamples and max(map(len, pairs[0])) <= BOOTSTRAP_LARGEST:
        draw = numpy_generator(seed, "bootstrap")
        interval = frechet_interval(*pairs[0], draw, resamples)
        pools = [np.unique(np.concatenate(draws), axis=0) for draws in (draws1, draws2)]
        infinity = frechet_infinity(*pools, numpy_generator(seed, "infinity"))
        result["fid"] |= {
            "bootstrap": {"draw": 0, "resamples": resamples, **interval._asdict()},
            "infinity": infinity and infinity._asdict(),
        }
    return result


def compare_classes(
    draws1: Sequence[np.ndarray],
    draws2: Sequence[np.ndarray],
    labels1: Sequence[Sequence[str]],
    labels2: Sequence[Sequence[str]],
) -> dict[str, dict[str, Any]]:
    """Return FID and tiles of each class that both sets hold; empty unless there are two classes.

    Args:
        draws1, draws2: features (N, F) of each draw.
        labels1, labels2: the class of each tile of each draw.

    Raises:
        ValueError: as `frechet_distance`.
    """
    labels1, labels2 = ([np.asarray(draw) for draw in side] for side in (labels1, labels2))
    everywhere = set.intersection(*({*draw.tolist()} for draw in (*labels1, *labels2)))
    classes = {}
    for name in sorted(everywhere):
        sides = [
            [features[labels == name] for features, labels in zip(draws, tags, strict=True)]
            for draws, tags in ((draws1, labels1), (draws2, labels2))
        ]
        counts = [min(map(len, side)) for side in sides]
        if min(counts) >= 2:
            values = [frechet_distance(*pair) for pair in zip(*sides, strict=True)]
            classes[name] = {"tiles": counts, "fid": summary(values)}
    return classes if len(everywhere) > 1 else {}


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
