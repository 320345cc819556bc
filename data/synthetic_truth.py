"""The truth behind a simulated cohort: names of donors, slides and samples, and their factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from data.synthetic_tissue import FACTOR_RANGES, TISSUES, TissueFactors
from runtime.seeds import numpy_generator

FACTORS = list(TissueFactors._fields)
BLOCKS = {"lung": 625, "brain": 3025}  # block numbers of the two tissues in GTEx sample names
ALIQUOTS = {"lung": "SM-LUN01", "brain": "SM-BRA01"}
PEN_ONE_IN, FOLD_ONE_IN, FORTY_ONE_IN = 8, 8, 6

Ranges = Sequence[tuple[float, float]]


def spread_factors(count: int, ranges: Ranges, rng: np.random.Generator) -> np.ndarray:
    """Return factors (count, 4) that cover each range evenly, the least correlated of 200 draws."""
    best, least = None, np.inf
    for _ in range(200):
        ranks = np.stack([rng.permutation(count) for _ in FACTORS], axis=1)
        unit = (ranks + rng.random(ranks.shape)) / count
        worst = 0.0
        if count > 2:
            worst = np.abs(np.corrcoef(unit.T) - np.eye(len(FACTORS))).max()
        if best is None or worst < least:
            best, least = unit, worst
    low, high = np.array(ranges).T
    return low + best * (high - low)


def standardise(factors: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Return factors with mean 0 and variance 1 over the range of the tissue."""
    low, high = np.array(ranges).T
    return (factors - (low + high) / 2) / ((high - low) / np.sqrt(12))


def make_truth(donors: int, profiles: int, seed: int) -> pd.DataFrame:
    """Return the truth of a cohort, one row per tissue and donor.

    Args:
        donors: how many have slides; the others have a profile only.
        profiles: donors in all.
        seed: factors and slide facts follow from it.

    Returns:
        donor, tissue, slide (empty without one), sample (the RNA aliquot), the factors, has_pen and
        has_fold (0 or 1), scan_magnification (20 or 40; 0 without a slide).
    """
    tables = []
    for tissue in TISSUES:
        rng = numpy_generator(seed, "truth", tissue)
        factors = np.concatenate(
            [
                spread_factors(number, FACTOR_RANGES[tissue], rng)
                for number in (donors, profiles - donors)
                if number
            ]
        )
        donor = [f"SIM-{number:04d}" for number in range(1, profiles + 1)]
        block = BLOCKS[tissue]
        table = pd.DataFrame({"donor": donor, "tissue": tissue})
        table["slide"] = [
            f"{name}-{block:04d}.svs" if number < donors else ""
            for number, name in enumerate(donor)
        ]
        table["sample"] = [f"{name}-{block + 1:04d}-{ALIQUOTS[tissue]}" for name in donor]
        table[FACTORS] = factors.round(5)
        has_slide = table.slide != ""
        for column, every in (("has_pen", PEN_ONE_IN), ("has_fold", FOLD_ONE_IN)):
            table[column] = np.where(has_slide, _one_in(every, profiles, donors, rng), 0)
        forty = _one_in(FORTY_ONE_IN, profiles, donors, rng)
        table["scan_magnification"] = np.where(has_slide, np.where(forty, 40, 20), 0)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _one_in(every: int, count: int, among: int, rng: np.random.Generator) -> np.ndarray:
    marks = np.zeros(count, int)
    marks[rng.permutation(among)[: max(1, round(among / every))]] = 1
    return marks
