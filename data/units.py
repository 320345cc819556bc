"""Units of expression values: told from the values, logarithms undone, counts per million."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.errors import UserError

# No table of counts or TPM stays below this; any table of their logarithms does.
LARGEST_LOG = 50.0
# TPM sum to 10^6 over all genes.
LARGEST_TPM_SUM = 1.2e6
LARGEST_INTEGER = 2.0**53
# What undoes a logarithm x of an expression value.
LOGARITHMS = {
    "log2": np.exp2,
    "log2p1": lambda x: np.exp2(x) - 1,
    "log1p": np.expm1,
    "log10p1": lambda x: np.power(10.0, x) - 1,
}


class ValueFacts(NamedTuple):
    """What tells the unit of N samples.

    Attributes:
        totals: float64 (N,), sum over the genes.
        largest: float64 (N,), largest value.
        whole: bool (N,), whether all values are whole numbers.
        divisor: int64 (N,), greatest common divisor of whole values, else 0. It is 1 for counts;
            counts per million of a sample of 1,000 reads are whole numbers too, of divisor 1,000.
    """

    totals: np.ndarray
    largest: np.ndarray
    whole: np.ndarray
    divisor: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> ValueFacts:
        """Return the facts of values (N, G)."""
        whole = (values == np.rint(values)).all(axis=1)
        divisor = np.zeros(len(values), np.int64)
        integers = np.minimum(values[whole], LARGEST_INTEGER).astype(np.int64)
        divisor[whole] = np.gcd.reduce(integers, axis=1)
        return cls(
            values.sum(axis=1, dtype=np.float64),
            values.max(axis=1, initial=0).astype(np.float64),
            whole,
            divisor,
        )

    @classmethod
    def joined(cls, parts: Sequence[ValueFacts]) -> ValueFacts:
        """Return the facts of the samples of all parts."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def and_genes(self, more: ValueFacts) -> ValueFacts:
        """Return the facts of the same samples over further genes too."""
        return ValueFacts(
            self.totals + more.totals,
            np.maximum(self.largest, more.largest),
            self.whole & more.whole,
            np.where(self.whole & more.whole, np.gcd(self.divisor, more.divisor), 0),
        )


class Normalized(NamedTuple):
    """Values float32 (N, G), the unit they had and what was done ("cpm" or "none")."""

    values: np.ndarray
    unit: str
    normalization: str


def guess_unit(facts: ValueFacts) -> str:
    """Return "counts", "tpm", "log", or "mixed" where some samples are counts and others TPM.

    Whole numbers are counts; so are broken ones (medians, expected counts) whose sum no TPM reach.
    """
    if facts.whole.all():
        return "counts"
    if facts.largest.max() < LARGEST_LOG:
        return "log"
    if np.median(facts.totals[~facts.whole]) > LARGEST_TPM_SUM:
        return "counts"
    return "mixed" if (facts.divisor == 1).any() else "tpm"


def counts_per_million(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return values (N, G) scaled so that each sample's total (N,) over all genes becomes 10^6."""
    return values * (1e6 / totals[:, None]).astype(np.float32)


def unit_problem(facts: ValueFacts, names: Sequence[str]) -> str | None:
    """Return why the unit of N named samples cannot be told, None where it can."""
    unit = guess_unit(facts)
    if unit == "log":
        return (
            f"the largest value is {facts.largest.max():.4g}, which looks like logarithms; undo"
            " them with prepare_expression.py --unit log2 (or log2p1, log1p, log10p1), or say with"
            " --unit tpm that they are none"
        )
    if unit == "mixed":
        counts, tpm = (int(rows.argmax()) for rows in (facts.divisor == 1, ~facts.whole))
        return (
            f"mixed units: {names[counts]} looks like counts, {names[tpm]} like TPM; bring them to"
            " one unit first"
        )
    return None


def normalized(
    values: np.ndarray, facts: ValueFacts, names: Sequence[str], unit: str, normalize: str
) -> Normalized:
    """Return values (N, G) in the unit to keep.

    Args:
        facts: of the samples over all their genes.
        unit: "counts", "tpm", "cpm", a key of LOGARITHMS (undone already), or "auto".
        normalize: "cpm", "none", or "auto": counts to counts per million, others as they are.

    Raises:
        UserError: a sample that is 0 in all genes, or a unit that cannot be told.
    """
    empty = facts.totals == 0
    if empty.any():
        raise UserError(f"sample {names[int(empty.argmax())]} is 0 in all genes")
    if unit == "auto":
        problem = unit_problem(facts, names)
        if problem:
            raise UserError(problem)
        unit = guess_unit(facts)
    if normalize == "auto":
        normalize = "cpm" if unit == "counts" else "none"
    if normalize == "cpm":
        values = counts_per_million(values, facts.totals)
    return Normalized(values, unit, normalize)
