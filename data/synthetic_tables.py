"""The expression files of a simulated cohort, in the layouts that downloads come in."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd

from data.synthetic_expression import GenePrograms, make_activity, simulate_counts
from data.synthetic_tissue import FACTOR_RANGES, TISSUES
from data.synthetic_truth import FACTORS, spread_factors, standardise
from runtime.files import atomic_path
from runtime.seeds import numpy_generator

EXTERNAL_PROFILES = 12
EXTERNAL_ABSENT = 0.05


def _activity(
    factors: np.ndarray, tissue: str, sex: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the activity of every program in the samples of one tissue."""
    scores = pd.DataFrame(standardise(factors, FACTOR_RANGES[tissue]), columns=FACTORS)
    return make_activity(scores, tissue, sex, rng)


def write_csv(path: Path, table: pd.DataFrame, **options) -> None:
    """Write a table as CSV, gzipped when so named, whole or not at all, in reproducible bytes."""
    content = table.to_csv(index=False, lineterminator="\n", **options).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content
        )


def write_expression(output: Path, truth: pd.DataFrame, programs: GenePrograms, seed: int) -> None:
    """Write the annotations and one count table per tissue, genes in rows."""
    donors = truth.donor.unique()
    sex = numpy_generator(seed, "sex").permutation(np.arange(len(donors)) % 2 + 1)
    write_csv(output / "annotations.tsv", pd.DataFrame({"SUBJID": donors, "SEX": sex}), sep="\t")
    for tissue in TISSUES:
        rng = numpy_generator(seed, "counts", tissue)
        rows = truth[truth.tissue == tissue]
        activity = _activity(rows[FACTORS].to_numpy(), tissue, sex, rng)
        counts = simulate_counts(programs, activity, rng)
        table = pd.DataFrame(counts.T, columns=rows["sample"].to_numpy())
        table.insert(0, "gene_id", programs.genes)
        write_csv(output / "expression" / f"{tissue}_counts.csv.gz", table)


def write_external(output: Path, programs: GenePrograms, seed: int) -> None:
    """Write profiles of outsiders: samples in rows, gene ids without version, some genes absent."""
    truths = []
    for tissue in TISSUES:
        rng = numpy_generator(seed, "external", tissue)
        factors = spread_factors(EXTERNAL_PROFILES, FACTOR_RANGES[tissue], rng)
        sex = rng.integers(1, 3, EXTERNAL_PROFILES)
        counts = simulate_counts(programs, _activity(factors, tissue, sex, rng), rng)
        kept = np.flatnonzero(rng.random(len(programs.genes)) >= EXTERNAL_ABSENT)
        samples = [
            f"EXT-{tissue[:3].upper()}{number:02d}" for number in range(1, EXTERNAL_PROFILES + 1)
        ]
        genes = [programs.genes[number].split(".")[0] for number in kept]
        table = pd.DataFrame(counts[:, kept], columns=genes)
        table.insert(0, "sample", samples)
        write_csv(output / f"external_{tissue}_counts.csv.gz", table)
        truth = pd.DataFrame({"donor": samples, "tissue": tissue, "sample": samples})
        truth[FACTORS] = factors.round(5)
        truths.append(truth)
    write_csv(output / "truth_external.csv", pd.concat(truths))
