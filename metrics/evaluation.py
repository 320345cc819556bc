"""The comparisons of tile sets that fid.py offers: tiles in, plain values for its result out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.comparison import compare_classes, compare_draws
from metrics.copying import copying_scores, nearest_tiles
from metrics.coverage import Coverage
from metrics.expression_recovery import (
    fit_expression_reader,
    most_abundant,
    read_expression,
    recovery_scores,
)
from metrics.features import FeatureCost, FeatureExtractor, TileSource
from metrics.statistics import difference, summary
from runtime.dry_run import seconds_per_unit
from runtime.errors import UserError
from runtime.seeds import numpy_generator

COMPARED = ("fid", "kid", *Coverage._fields)
SHEET_PAIRS = 8  # closest pairs that are shown

Tiles = Sequence[tuple[TileSource, int]]


def compare_tiles(
    extractor: FeatureExtractor,
    labels: Sequence[str],
    sides: Sequence[Sequence[Tiles]],
    seed: int,
    resamples: int,
    classes: Sequence[Sequence[Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """Return what `compare_draws` says of two sets' tiles, and of each class where there are two.

    Args:
        labels: names of the two sets.
        sides: the draws of each set.
        seed, resamples: as for `compare_draws`.
        classes: the class of every tile, in the order of `sides`; None: no classes.

    Raises:
        UserError: a tile cannot be read, or the features cannot be compared.
    """
    features = [
        _per_part(extractor, draws, label) for label, draws in zip(labels, sides, strict=True)
    ]
    try:
        result = compare_draws(*features, seed, resamples)
        if classes is not None:
            result["classes"] = compare_classes(*features, *classes)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"{' against '.join(labels)}: {error}") from error
    return result


def comparison_cost(
    extractor: FeatureExtractor,
    comparisons: Sequence[Sequence[Sequence[Tiles]]],
    floors: Sequence[Sequence[Sequence[Tiles]]],
    others: Sequence[Tiles],
    resamples: int,
) -> FeatureCost:
    """Return what comparisons would take, from features of a few tiles and a draw of noise.

    Args:
        comparisons: the draws of both sides of each. floors: likewise, without interval.
        others: tiles whose features are needed besides.
        resamples: as for `compare_tiles`.
    """
    if not comparisons:
        return FeatureCost(0, 0, 0.0, 0)
    draws = [draw for sides in (*comparisons, *floors) for side in sides for draw in side]
    cost = extractor.cost([tile for tiles in (*draws, *others) for tile in tiles])
    noise = np.random.default_rng(0)
    sides = [
        [noise.standard_normal((len(side[0]), cost.width), np.float32)] for side in comparisons[0]
    ]
    whole, plain = (
        seconds_per_unit(lambda n=n: bool(compare_draws(*sides, 0, n))) for n in (resamples, 0)
    )
    every = sum(len(one) for one, _ in (*comparisons, *floors)) * plain
    seconds = cost.seconds + every + len(comparisons) * max(0.0, whole - plain)
    return cost._replace(seconds=seconds)


def copying_of(
    extractor: FeatureExtractor, generated: Tiles, training: Tiles, held_out: Tiles, seed: int
) -> tuple[dict[str, Any], list[tuple[int, int, float]]]:
    """Return `copying_scores` of tiles, and the closest pairs of different training tiles.

    Returns:
        the scores; up to 8 of (place in `generated`, place in `training`, distance), closest first.
    """
    rows = [
        extractor.features(tiles, label)
        for tiles, label in (
            (generated, "generated tiles"),
            (training, "training tiles"),
            (held_out, "held-out tiles"),
        )
    ]
    scores = copying_scores(*rows, numpy_generator(seed, "copying"))
    nearest = nearest_tiles(rows[0], rows[1])
    order = np.argsort(nearest.distances, kind="stable")
    first = {int(nearest.numbers[k]): k for k in order[::-1]}  # the closest of each training tile
    places = sorted(first.values(), key=lambda k: nearest.distances[k])[:SHEET_PAIRS]
    return scores, [(int(k), int(nearest.numbers[k]), float(nearest.distances[k])) for k in places]


def recovery_of(
    extractor: FeatureExtractor,
    training: Sequence[Tiles],
    training_log_expression: np.ndarray,
    conditions: Mapping[str, Sequence[Tiles]],
    log_expression: np.ndarray,
    donors: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return `recovery_scores` of slides: real held-out tiles, generated ones and the controls.

    Args:
        training: the real tiles of each training slide.
        training_log_expression: (training slides, G).
        conditions: name to the tiles of each held-out slide; "generated" is shifted by one slide
            for the control "shuffled", which needs no tiles of its own.
        log_expression: (held-out slides, G).
        donors: of the held-out slides.
        seed: of the intervals.
    """

    def means(slides: Sequence[Tiles], label: str) -> np.ndarray:
        return np.stack([rows.mean(axis=0) for rows in _per_part(extractor, slides, label)])

    genes = most_abundant(training_log_expression)
    reader = fit_expression_reader(
        means(training, "training tiles"), training_log_expression[:, genes]
    )
    predicted = {
        name: read_expression(reader, means(slides, f"{name} tiles"))
        for name, slides in conditions.items()
    }
    predicted["shuffled"] = np.roll(predicted["generated"], 1, axis=0)
    draw = numpy_generator(seed, "recovery")
    scores = recovery_scores(predicted, log_expression[:, genes], draw, donors)
    return {
        "conditions": scores,
        "genes": len(genes),
        "training_slides": len(training),
        "held_out_slides": len(log_expression),
    }


def combine_runs(
    own: list[dict[str, Any]],
    other: list[dict[str, Any]],
    against: Sequence[str],
    replicated: bool,
) -> dict[str, Any]:
    """Return mean and interval over several seeds and trainings, and the difference of two models.

    With one training of each model the draws are compared in pairs that share their real tiles:
    the noise is that of the tiles. With several, each training is one value, so that the noise is
    that of training.

    Args:
        own: results of the model, one per training and seed.
        other: of the model it is held against, or empty.
        against: checkpoints of that model.
        replicated: whether `own` holds several trainings.

    Returns:
        the first result, `over_runs` (the summaries over runs), `runs` (all results), `against`.
    """
    names = [name for name in COMPARED if all(run[name] for run in (*own, *other))]
    whole = {name: summary([run[name]["mean"] for run in own]) for name in names}
    content = own[0] | {"over_runs": whole, "runs": own + other}
    if not other:
        return content
    paired = not replicated and len(against) == 1

    def values(runs: list[dict[str, Any]], name: str) -> list[float]:
        if paired:
            return [value for run in runs for value in run[name]["draws"]]
        trainings: dict[str, list[float]] = {}
        for run in runs:
            key = run["sets"][1]["checkpoint_sha256"]
            trainings.setdefault(key, []).append(run[name]["mean"])
        return [float(np.mean(seeds)) for seeds in trainings.values()]

    content["against"] = {
        "checkpoints": list(against),
        "noise": "the draws of tiles (not of training)" if paired else "training",
        **{name: difference(values(own, name), values(other, name), paired) for name in names},
    }
    return content


def _per_part(extractor: FeatureExtractor, parts: Sequence[Tiles], label: str) -> list[np.ndarray]:
    rows = extractor.features([tile for part in parts for tile in part], label)
    return np.split(rows, np.cumsum([len(part) for part in parts])[:-1])
