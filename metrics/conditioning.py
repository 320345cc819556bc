"""Does the profile reach the tile? Correlation with the truth, swaps, and dose response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from metrics.morphology import morphology_of_tiles
from runtime.dry_run import seconds_per_unit
from runtime.seeds import numpy_generator

# The order of metrics.morphology.Morphology.
FACTORS = ("nuclear_density", "nuclear_diameter_um", "stain_ratio", "airspace_fraction")
RESAMPLES = 1000
SWAPPED = 8  # profiles and noises of the swap measurement
DOSES = np.arange(-2.0, 3.0)  # standard deviations of a program's activity
DOSED = 16  # profiles that are moved
CONTROLS = 4  # each donor's own profile, another's, zero and the class mean

TileMaker = Callable[[np.ndarray, int, int], np.ndarray]


def measure_conditioning(
    tiles: TileMaker,
    expression: np.ndarray,
    truth: np.ndarray,
    class_mean: np.ndarray,
    programs: Mapping[str, np.ndarray],
    mpp: float,
    tiles_per_donor: int,
    seed: int,
) -> dict[str, Any]:
    """Return whether generated tiles follow the profiles of held-out donors, ready for JSON.

    Args:
        tiles: returns tiles uint8 (count, H, W, 3) of a profile (G,), numbered from `first` on:
            the same number has the same noise.
        expression: (donors, G) >= 0, of donors that no network was trained on.
        truth: (donors, factors), in the order of FACTORS.
        class_mean: (G,), the mean profile of the training donors.
        programs: name of a factor to log fold changes (G,) per standard deviation; may be empty.
        mpp: um per pixel of the tiles.
        tiles_per_donor: how many are measured.
        seed: of the shuffle and the bootstrap.

    Returns:
        `factors` (`conditioning_scores`), `mean` (`mean_scores`), each for the donor's own profile
        ("r"), another donor's, zero and class-mean ones; `dose_response` of each program;
        `profile_change` and `noise_change` (`swap_changes`); `n_donors`, `tiles_per_donor`.
    """
    donors = np.arange(len(expression))
    # Every donor gets the next one of a random cycle: nobody keeps the own profile.
    cycle = numpy_generator(seed, "shuffle").permutation(donors)
    others = np.empty_like(donors)
    others[cycle] = np.roll(cycle, 1)
    given = {
        "r": expression,
        "r_shuffled": expression[others],
        "r_zero": np.zeros_like(expression),
        "r_class_mean": np.broadcast_to(class_mean, expression.shape),
    }
    found: dict[str, list] = {name: [] for name in given}
    for donor in tqdm(donors, unit="donor", desc="conditioning"):
        for name, profiles in given.items():
            made = tiles(profiles[donor], donor * tiles_per_donor, tiles_per_donor)
            found[name].append(morphology_of_tiles(made, mpp))
    measured = {name: np.array(values) for name, values in found.items()}

    doses = {}
    for name, weights in tqdm(programs.items(), unit="program", desc="dose response"):
        measures = []
        for dose in DOSES:
            moved = expression[:DOSED] * np.exp(dose * weights).astype(np.float32)
            parts = [
                tiles(profile, number * tiles_per_donor, tiles_per_donor)
                for number, profile in enumerate(moved)
            ]
            measures.append(morphology_of_tiles(np.concatenate(parts), mpp))
        spread = truth.std(axis=0)
        doses[name] = dose_response(np.array(measures), DOSES, spread, FACTORS.index(name))

    swapped = np.stack([tiles(profile, 0, SWAPPED) for profile in expression[:SWAPPED]])
    profile_change, noise_change = swap_changes(swapped)
    return {
        "factors": conditioning_scores(truth, measured),
        "mean": mean_scores(truth, measured, numpy_generator(seed, "bootstrap")),
        "dose_response": doses,
        "profile_change": profile_change,
        "noise_change": noise_change,
        "n_donors": len(expression),
        "tiles_per_donor": tiles_per_donor,
    }


def conditioning_cost(
    tiles: TileMaker,
    expression: np.ndarray,
    truth: np.ndarray,
    class_mean: np.ndarray,
    programs: Mapping[str, np.ndarray],
    mpp: float,
    tiles_per_donor: int,
    seed: int,
) -> tuple[int, float]:
    """Return how many tiles `measure_conditioning` would make and its seconds, from one donor's.

    Args: as there.
    """
    donors = len(expression)
    profiles = donors * CONTROLS + len(programs) * len(DOSES) * min(donors, DOSED)
    count = profiles * tiles_per_donor + min(donors, SWAPPED) * SWAPPED

    def work() -> int:
        morphology_of_tiles(tiles(expression[0], 0, tiles_per_donor), mpp)
        return tiles_per_donor

    return count, count * seconds_per_unit(work)


def conditioning_scores(
    truth: np.ndarray, measured: dict[str, np.ndarray]
) -> dict[str, dict[str, float | None]]:
    """Return, per factor, the Pearson correlation over donors of truth with each measurement.

    Args:
        truth: (donors, factors), true factors in the order of FACTORS.
        measured: name of the condition to (donors, factors); NaN where a factor could not be
            measured.

    Returns:
        factor to condition to r; None where fewer than 3 donors could be measured or nothing
        varies.
    """
    return {
        factor: {
            name: _correlation(truth[:, column], values[:, column])
            for name, values in measured.items()
        }
        for column, factor in enumerate(FACTORS)
    }


def mean_scores(
    truth: np.ndarray, measured: dict[str, np.ndarray], generator: np.random.Generator
) -> dict[str, dict[str, float | None]]:
    """Return, per condition, the correlation averaged over factors with a 95 % interval.

    Args:
        truth, measured: as `conditioning_scores`.
        generator: draws donors with replacement, RESAMPLES times.

    Returns:
        condition to `r`, `low` and `high`: the mean over the factors that could be measured and its
        percentile bootstrap interval over donors; None where none could be.
    """
    draws = generator.integers(len(truth), size=(RESAMPLES, len(truth)))
    scores = {}
    for name, values in measured.items():
        resampled = [_mean_correlation(truth[rows], values[rows]) for rows in draws]
        known = [value for value in resampled if value is not None]
        low, high = np.quantile(known, (0.025, 0.975)).tolist() if known else (None, None)
        scores[name] = {"r": _mean_correlation(truth, values), "low": low, "high": high}
    return scores


def dose_response(
    measured: np.ndarray, doses: np.ndarray, spread: np.ndarray, own: int
) -> dict[str, Any]:
    """Return how factors measured on tiles move with the dose of one gene program.

    Args:
        measured: (doses, factors), of tiles from profiles with the program moved, noise kept.
        doses: (doses,), ascending, in standard deviations of the program's activity.
        spread: (factors,), standard deviation of each factor over real donors.
        own: column of the factor that the program drives.

    Returns:
        `change`: factor to its change from the lowest dose on, in standard deviations over donors;
        `monotone`: the program's own factor rises with every step of the dose; `slope`: factor to
        the least-squares slope, standard deviations per standard deviation; `others`: the largest
        slope, either way, of a factor that the program does not drive. None where a factor could
        not be measured at every dose.
    """
    change = (measured - measured[0]) / spread
    centred = doses - doses.mean()
    slopes = centred @ change / (centred @ centred)
    return {
        "doses": doses.tolist(),
        "change": dict(zip(FACTORS, [_plain(column) for column in change.T], strict=True)),
        "monotone": bool((np.diff(measured[:, own]) > 0).all()),
        "slope": dict(zip(FACTORS, _plain(slopes), strict=True)),
        "others": _plain(np.abs(np.delete(slopes, own)).max(keepdims=True))[0],
    }


def swap_changes(tiles: np.ndarray) -> tuple[float, float]:
    """Return the mean absolute change of a pixel when the profile is swapped, and when the noise
    is.

    Args:
        tiles: uint8 (profiles, noises, H, W, 3), every profile with every noise.

    Returns:
        Grey levels (0 to 255) between tiles of two profiles with the same noise, and of two noises
        with the same profile.
    """
    levels = tiles.astype(np.float32)
    by_profile = np.abs(levels - np.roll(levels, 1, axis=0)).mean()
    by_noise = np.abs(levels - np.roll(levels, 1, axis=1)).mean()
    return float(by_profile), float(by_noise)


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def _mean_correlation(truth: np.ndarray, measured: np.ndarray) -> float | None:
    pairs = zip(truth.T, measured.T, strict=True)
    known = [value for pair in pairs if (value := _correlation(*pair)) is not None]
    return float(np.mean(known)) if known else None


def _correlation(truth: np.ndarray, measured: np.ndarray) -> float | None:
    known = np.isfinite(measured)
    if known.sum() < 3 or np.ptp(measured[known]) == 0 or np.ptp(truth[known]) == 0:
        return None
    return round(float(np.corrcoef(truth[known], measured[known])[0, 1]), 4)
