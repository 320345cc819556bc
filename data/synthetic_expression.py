"""Simulated bulk expression: overdispersed counts that follow tissue, sex and morphology."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

MORPHOLOGY_PROGRAMS = (
    "nuclear_density",
    "nuclear_diameter_um",
    "stain_ratio",
    "airspace_fraction",
)
TISSUE_PROGRAMS = ("tissue_lung", "tissue_brain")
NUISANCE_PROGRAMS = ("ischemic_time", "batch")

# Program: share of the genes, least number of genes, log fold change per unit of activity.
PROGRAM_SIZES = {
    **dict.fromkeys(TISSUE_PROGRAMS, (0.08, 8, 1.3)),
    "sex": (0.003, 4, 1.5),
    **dict.fromkeys(MORPHOLOGY_PROGRAMS, (0.02, 10, 0.4)),
    **dict.fromkeys(NUISANCE_PROGRAMS, (0.03, 5, 0.3)),
}
MIN_GENES = 100
MAX_GENES = 19198
MEAN_COUNT_PER_GENE = 800


@dataclass
class GenePrograms:
    """How the expression of G genes depends on the activity of P programs.

    Attributes:
        genes: G versioned ids.
        log_mean: float (G,), natural log of the base expression, arbitrary unit.
        dispersion: float (G,), variance of a count is mean + dispersion * mean ** 2.
        names: P program names.
        weights: float (P, G), log fold change per unit of activity; programs share no gene.
    """

    genes: list[str]
    log_mean: np.ndarray
    dispersion: np.ndarray
    names: list[str]
    weights: np.ndarray

    def table(self) -> pd.DataFrame:
        """Return the gene sets: columns gene_id, program, weight; one row per gene of a program."""
        program, gene = np.nonzero(self.weights)
        return pd.DataFrame(
            {
                "gene_id": [self.genes[number] for number in gene],
                "program": [self.names[number] for number in program],
                "weight": self.weights[program, gene].round(4),
            }
        )


def make_programs(gene_count: int, rng: np.random.Generator) -> GenePrograms:
    """Return genes and programs; programs take their genes from the upper two thirds by expression.

    Args:
        gene_count: MIN_GENES to MAX_GENES.
        rng: everything random is drawn from it.
    """
    log_mean = rng.normal(0, 1.6, gene_count)
    expressed = rng.permutation(np.flatnonzero(log_mean > np.quantile(log_mean, 0.33)))
    weights = np.zeros((len(PROGRAM_SIZES), gene_count))
    first = 0
    for row, (name, (share, least, size)) in enumerate(PROGRAM_SIZES.items()):
        count = max(least, round(share * gene_count))
        chosen = expressed[first : first + count]
        first += count
        sign = 1.0 if name in TISSUE_PROGRAMS else rng.choice([-1.0, 1.0], count)
        weights[row, chosen] = sign * size * rng.uniform(0.6, 1.4, count)
    version = rng.integers(1, 16, gene_count)
    genes = [f"ENSG9{number:010d}.{version[number - 1]}" for number in range(1, gene_count + 1)]
    dispersion = 0.04 + 0.25 * rng.gamma(1.0, 0.5, gene_count)
    return GenePrograms(genes, log_mean, dispersion, list(PROGRAM_SIZES), weights)


def make_activity(
    scores: pd.DataFrame, tissue: str, sex: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the activity of every program in N samples: N rows, a column per program.

    Args:
        scores: N rows, the standardised factor for each morphology program.
        tissue: "lung" or "brain".
        sex: (N,) 1 or 2; becomes -0.5 or 0.5.
        rng: nuisance programs are drawn from it, standard normal.
    """
    activity = scores[list(MORPHOLOGY_PROGRAMS)].copy()
    for name in TISSUE_PROGRAMS:
        activity[name] = float(name == f"tissue_{tissue}")
    activity["sex"] = sex - 1.5
    for name in NUISANCE_PROGRAMS:
        activity[name] = rng.standard_normal(len(activity))
    return activity


def simulate_counts(
    programs: GenePrograms, activity: pd.DataFrame, rng: np.random.Generator
) -> np.ndarray:
    """Return counts int64 (N, G): negative binomial around library size times expression share.

    Args:
        programs: P programs over G genes.
        activity: as `make_activity` returns it.
        rng: everything random is drawn from it.
    """
    share = np.exp(programs.log_mean + activity[programs.names].to_numpy(float) @ programs.weights)
    share /= share.sum(axis=1, keepdims=True)
    library = len(programs.genes) * MEAN_COUNT_PER_GENE * rng.lognormal(0, 0.3, (len(share), 1))
    shape = 1 / programs.dispersion
    return rng.poisson(share * library * rng.gamma(shape, 1 / shape, share.shape))
