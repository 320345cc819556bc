"""The truth that generated tiles are measured against: donors' factors and the gene programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from runtime.errors import UserError
from runtime.files import require_file

MIN_DONORS = 4


def read_factors(path: str, names: Sequence[str], factors: Sequence[str]) -> np.ndarray:
    """Return true factors float64 (len(names), factors), NaN for a row the table does not hold.

    Args:
        path: CSV with columns slide (may be empty), sample and the factors.
        names: slides or samples.
        factors: columns wanted.

    Raises:
        UserError: a missing file or column, or a factor that is no number.
    """
    frame = pd.read_csv(require_file(path, "truth table"), keep_default_na=False)
    missing = {"slide", "sample", *factors} - set(frame.columns)
    if missing:
        raise UserError(f"{path}: column {sorted(missing)[0]} is missing")
    frame["name"] = frame.slide.where(frame.slide != "", frame["sample"])
    try:
        return frame.set_index("name")[list(factors)].astype(float).reindex(names).to_numpy()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def known_rows(path: str, truth: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the row numbers of held-out donors with all true factors.

    Args:
        path: of the truth table, for errors.
        truth: (N, factors), of `read_factors`.
        held_out: bool (N,).

    Raises:
        UserError: there are fewer than MIN_DONORS.
    """
    rows = np.flatnonzero(held_out & np.isfinite(truth).all(axis=1))
    if len(rows) < MIN_DONORS:
        found = f"{len(rows)} held-out donors with true factors"
        raise UserError(f"{path}: {found}; {MIN_DONORS} are needed")
    return rows


def read_programs(
    path: str,
    genes: Sequence[str],
    names: Sequence[str] | None = None,
    gene_sd: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the weights float64 (G,) of each gene program of the given names, 0 for other genes.

    Args:
        path: CSV with columns gene_id, program, weight: natural log fold change per standard
            deviation of the program's activity. Ids are matched without version.
        genes: G ids, in order.
        names: programs wanted; None: all.
        gene_sd: (G,), weights of the genes of a table without weights, e.g. each gene's own
            standard deviation of log expression; such a list of genes needs no program's name.

    Raises:
        UserError: a missing file or column, or no such program over these genes.
    """
    frame = pd.read_csv(require_file(path, "gene programs"))
    if gene_sd is not None and "program" not in frame:
        frame["program"] = Path(path).stem
    if gene_sd is not None and "weight" not in frame and "gene_id" in frame:
        sd_of = dict(zip((gene.split(".")[0] for gene in genes), gene_sd, strict=True))
        frame["weight"] = frame.gene_id.str.split(".").str[0].map(sd_of).fillna(0.0)
    missing = {"gene_id", "program", "weight"} - set(frame.columns)
    if missing:
        raise UserError(f"{path}: column {sorted(missing)[0]} is missing")
    names = frame.program.unique().tolist() if names is None else names
    frame["gene"] = frame.gene_id.str.split(".").str[0]
    order = [gene.split(".")[0] for gene in genes]
    programs = {
        name: part.groupby("gene").weight.sum().reindex(order, fill_value=0.0).to_numpy()
        for name, part in frame[frame.program.isin(names)].groupby("program")
    }
    if not any(weights.any() for weights in programs.values()):
        raise UserError(f"{path}: no program named {', '.join(names)} with genes of the model")
    return programs
