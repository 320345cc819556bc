"""Edits of an expression profile: single genes, gene programs, steps between two profiles."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.profiles import ExpressionScaler
from runtime.errors import UserError

UNIT = "sd"


class GeneEdit(NamedTuple):
    """One gene's new value.

    Attributes:
        gene: id, with or without version.
        amount: standard deviations to add, or the new expression.
        relative: which of the two.
    """

    gene: str
    amount: float
    relative: bool


def parse_gene_edit(text: str) -> GeneEdit:
    """Return the edit of `GENE=+2sd` (shift by training deviations) or `GENE=35` (expression).

    Raises:
        UserError: neither form.
    """
    gene, equals, value = text.partition("=")
    relative = value.endswith(UNIT)
    try:
        amount = float(value.removesuffix(UNIT))
    except ValueError:
        amount = float("nan")
    if not (gene and equals and np.isfinite(amount)) or (not relative and amount < 0):
        raise UserError(f"--set_gene {text}: GENE=+2sd, GENE=-1sd or GENE=35 (expression >= 0)")
    return GeneEdit(gene.removeprefix("rna_"), amount, relative)


def set_genes(
    expression: np.ndarray,
    edits: Sequence[GeneEdit],
    genes: Sequence[str],
    scaler: ExpressionScaler,
) -> np.ndarray:
    """Return expression (N, G) with single genes changed, the others exactly as they were.

    Args:
        expression: (N, G) >= 0, not logged.
        edits: deviations are those of the training donors' transformed expression.
        genes: G ids.
        scaler: of the betaVAE.

    Raises:
        UserError: a gene that the model does not know.
    """
    column_of = {gene.split(".")[0]: column for column, gene in enumerate(genes)}
    edited = expression.copy()
    for edit in edits:
        name = edit.gene.split(".")[0]
        if name not in column_of:
            near = difflib.get_close_matches(name, column_of, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--set_gene {edit.gene}: not among the model's {len(genes)} genes{hint}"
            )
        column = column_of[name]
        if edit.relative:
            scaled = scaler.transform(edited)
            scaled[:, column] += edit.amount
            edited[:, column] = scaler.inverse(scaled)[:, column]
        else:
            edited[:, column] = edit.amount
    return edited


def move_program(expression: np.ndarray, weights: np.ndarray, doses: np.ndarray) -> np.ndarray:
    """Return one profile (G,) with a gene program moved to each dose, (doses, G).

    Args:
        expression: (G,) >= 0, not logged.
        weights: (G,), natural log fold change per unit of dose.
        doses: in standard deviations of the program's activity.
    """
    return (expression * np.exp(np.outer(doses, weights))).astype(np.float32)


def parse_dose(text: str, steps: int) -> np.ndarray:
    """Return `steps` evenly spaced doses of a range such as `-2..2`.

    Raises:
        UserError: not a range.
    """
    try:
        low, high = (float(end) for end in text.split(".."))
    except ValueError:
        low = high = float("nan")
    if not -np.inf < low < high < np.inf:
        raise UserError(f"--dose {text}: a range of standard deviations such as -2..2 is needed")
    return np.linspace(low, high, steps)
