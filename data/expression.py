"""Expression tables: `wsi_file_name`, annotations, then a `rna_<gene id>` column per gene."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from runtime.errors import UserError
from runtime.files import atomic_path, require_file

NAME_COLUMN = "wsi_file_name"
GENE_PREFIX = "rna_"
BLOCK_NAME = re.compile(r"([^-]+-[^-]+)-\d{4}(-|$)")


@dataclass
class ExpressionTable:
    """Profiles of N samples over G genes.

    Attributes:
        names: N slide file names or RNA sample names, unique.
        genes: G gene ids as in the header, without the `rna_` prefix.
        expression: float32 (N, G), TPM, counts or counts per million, >= 0, not logged.
        annotations: N rows of the table's other columns; always has `tissue`.
    """

    names: list[str]
    genes: list[str]
    expression: np.ndarray
    annotations: pd.DataFrame

    def __len__(self) -> int:
        return len(self.names)

    @property
    def donors(self) -> list[str]:
        """The donor of each row: the column `donor` where the table has one, else by the name."""
        if "donor" in self.annotations:
            return self.annotations["donor"].astype(str).tolist()
        return [donor_of(name) for name in self.names]

    def rows(self, keep: Sequence[int] | np.ndarray) -> ExpressionTable:
        """Return the table of the given row numbers, in that order."""
        keep = np.asarray(keep, dtype=np.int64)
        return ExpressionTable(
            [self.names[row] for row in keep],
            self.genes,
            self.expression[keep],
            self.annotations.iloc[keep].reset_index(drop=True),
        )

    def row_of(self, name: str, where: str | Path) -> int:
        """Return the row of a slide or sample, with or without `.svs`; `where` is for errors."""
        for candidate in (name, f"{name}.svs", name.removesuffix(".svs")):
            if candidate in self.names:
                return self.names.index(candidate)
        raise UserError(f"{where}: no row {name} in it (first row: {self.names[0]})")


def donor_of(name: str) -> str:
    """Return the donor of a slide or sample: the first two dash-separated fields (`GTEX-1117F`).

    A name that is not of the form donor, donor, four-digit block (as in ArrayExpress series) is its
    own donor.

    Source: GTEx sample naming, as used by the published tables.
    """
    stem = Path(name).name.removesuffix(".svs")
    found = BLOCK_NAME.match(stem)
    return found[1] if found else stem


def read_expression_table(path: str | Path) -> ExpressionTable:
    """Return the expression table of a CSV file, plain or gzipped.

    A table without a `tissue` column gets one: the file's name up to the first dot.

    Raises:
        UserError: missing file or column, no gene column, no row, a duplicated name or gene, a
            value that is missing, negative or not a number, or a truncated file.
    """
    path = require_file(path, "expression table")
    try:
        # Read as a row: a header that repeats a name would be renamed.
        header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].tolist()
        gene_columns = [column for column in header if str(column).startswith(GENE_PREFIX)]
        if NAME_COLUMN not in header:
            raise UserError(f"{path}: no column {NAME_COLUMN} (first column: {header[0]})")
        if not gene_columns:
            raise UserError(f"{path}: no gene column; their names begin with {GENE_PREFIX}")
        if len(set(gene_columns)) < len(gene_columns):
            twice = next(name for name in gene_columns if gene_columns.count(name) > 1)
            raise UserError(f"{path}: column {twice} appears more than once")
        frame = pd.read_csv(path, dtype=dict.fromkeys(gene_columns, np.float32))
        if frame[NAME_COLUMN].isna().any():
            row = int(frame[NAME_COLUMN].isna().to_numpy().argmax())
            raise UserError(f"{path}: row {row + 1} has no {NAME_COLUMN}")
    except (ValueError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as a table ({str(error).splitlines()[0]})"
        ) from error
    table = ExpressionTable(
        names=frame[NAME_COLUMN].astype(str).tolist(),
        genes=[column.removeprefix(GENE_PREFIX) for column in gene_columns],
        expression=frame[gene_columns].to_numpy(np.float32),
        annotations=frame.drop(columns=[NAME_COLUMN, *gene_columns]),
    )
    if "tissue" not in table.annotations:
        table.annotations["tissue"] = path.name.split(".")[0]
    check_expression(table, path)
    return table


def check_expression(table: ExpressionTable, where: str | Path) -> None:
    """Raise a UserError that names the first row and gene at fault unless the table can be used."""
    if not len(table):
        raise UserError(f"{where}: no rows")
    for what, values in (("row", table.names), ("gene", table.genes)):
        duplicated = pd.Index(values)[pd.Index(values).duplicated()]
        if len(duplicated):
            raise UserError(f"{where}: {what} {duplicated[0]} appears more than once")
    bad = ~(np.isfinite(table.expression) & (table.expression >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{where}: {table.names[row]}, gene {table.genes[column]}:"
            f" {table.expression[row, column]} is not an expression value (0 or more, not logged)"
        )


def read_cohort(paths: Sequence[str | Path]) -> ExpressionTable:
    """Return the tables of several tissues as one, rows in the order of the files.

    Raises:
        UserError: as `read_expression_table`; also when genes differ or a row name appears in two
        tables.
    """
    tables = [read_expression_table(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if table.genes != tables[0].genes:
            different = next(
                (
                    pair
                    for pair in zip(tables[0].genes, table.genes, strict=False)
                    if pair[0] != pair[1]
                ),
                (len(tables[0].genes), len(table.genes)),
            )
            raise UserError(
                f"{path}: genes differ from {paths[0]}: {different[1]} instead of {different[0]}"
            )
    cohort = ExpressionTable(
        [name for table in tables for name in table.names],
        tables[0].genes,
        np.concatenate([table.expression for table in tables]),
        pd.concat([table.annotations for table in tables], ignore_index=True),
    )
    check_expression(cohort, ", ".join(str(path) for path in paths))
    return cohort


def write_expression_table(path: str | Path, table: ExpressionTable) -> None:
    """Write a table as CSV (gzipped for .gz), whole or not at all; 6 significant digits."""
    values = pd.DataFrame(table.expression, columns=[GENE_PREFIX + gene for gene in table.genes])
    names = pd.Series(table.names, name=NAME_COLUMN)
    annotations = table.annotations.reset_index(drop=True)
    with atomic_path(path) as temporary:
        pd.concat([names, annotations, values], axis=1).to_csv(
            temporary, index=False, float_format="%.6g"
        )


def match_genes(table: ExpressionTable, genes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the expression of `table` over `genes`, matched without version, and the genes it
    lacks.

    Returns:
        float32 (N, len(genes)), 0 where the table lacks the gene; the list of lacking genes.

    Source: absent genes count as zero expression, as published for GEO series GSE120795.
    """
    column_of = {gene.split(".")[0]: column for column, gene in enumerate(table.genes)}
    columns = np.array([column_of.get(gene.split(".")[0], -1) for gene in genes])
    matched = np.zeros((len(table), len(genes)), np.float32)
    matched[:, columns >= 0] = table.expression[:, columns[columns >= 0]]
    return matched, [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
