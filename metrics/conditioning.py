"""Does the profile reach the tile? Correlation with the truth, and what a swap changes."""

from __future__ import annotations

import numpy as np

# The order of metrics.morphology.Morphology.
FACTORS = ("nuclear_density", "nuclear_diameter_um", "stain_ratio", "airspace_fraction")


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


def _correlation(truth: np.ndarray, measured: np.ndarray) -> float | None:
    known = np.isfinite(measured)
    if known.sum() < 3 or np.ptp(measured[known]) == 0 or np.ptp(truth[known]) == 0:
        return None
    return round(float(np.corrcoef(truth[known], measured[known])[0, 1]), 4)
