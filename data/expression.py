"""Expression tables: `wsi_file_name`, annotations, then a `rna_<gene id>` column per gene."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.delimited import DelimitedFile
from data.expression_cache import StackedRows, read_cached
from data.units import ValueFacts, guess_unit, unit_problem
from runtime.errors import UserError
from runtime.files import atomic_path, require_file

NAME_COLUMN = "wsi_file_name"
GENE_PREFIX = "rna_"
ROWS_AT_A_TIME = 1024
# A table of fewer genes says nothing about its unit.
LEAST_GENES = 100
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


class _TableText:
    """The text of an expression table, read block by block (see `data.expression_cache`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, DelimitedFile(path, "expression table")
        header = self.file.header
        if NAME_COLUMN not in header:
            raise UserError(f"{path}: no column {NAME_COLUMN} (first column: {header[0]})")
        is_gene = [name.startswith(GENE_PREFIX) for name in header]
        if not any(is_gene):
            raise UserError(f"{path}: no gene column; their names begin with {GENE_PREFIX}")
        self.gene_columns = [column for column, gene in enumerate(is_gene) if gene]
        name_column = header.index(NAME_COLUMN)
        others = [column for column, gene in enumerate(is_gene) if not gene]
        self.note_columns = [column for column in others if column != name_column]
        self.text_columns = [name_column, *self.note_columns]
        self.genes = [header[column].removeprefix(GENE_PREFIX) for column in self.gene_columns]
        self.columns = len(self.genes)
        self.names: list[str] = []
        self.notes: list[list[str]] = []
        self.value_facts: list[ValueFacts] = []

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield checked values float32 (n, G)."""
        for texts, values in self.file.blocks(self.text_columns, self.gene_columns, np.float32):
            names = [cells[0].strip() for cells in texts]
            if "" in names:
                row = len(self.names) + names.index("") + 1
                raise UserError(f"{self.path}: row {row} has no {NAME_COLUMN}")
            check_values(values, names, self.genes, self.path)
            self.names += names
            self.notes += [cells[1:] for cells in texts]
            self.value_facts.append(ValueFacts.of(values))
            yield values

    def facts(self) -> dict[str, Any]:
        """Return names, genes, the other columns as CSV, and the unit the values seem to have."""
        check_names(self.names, self.genes, self.path)
        facts = ValueFacts.joined(self.value_facts)
        problem = unit_problem(facts, self.names)
        if problem and len(self.genes) >= LEAST_GENES and not _has_manifest(self.path):
            raise UserError(f"{self.path}: {problem}")
        notes = io.StringIO()
        writer = csv.writer(notes, lineterminator="\n")
        writer.writerow([self.file.header[column] for column in self.note_columns])
        writer.writerows(self.notes)
        return {
            "names": self.names,
            "genes": self.genes,
            "annotations": notes.getvalue() if self.note_columns else "",
            "unit": guess_unit(facts),
        }


def _has_manifest(path: Path) -> bool:
    """Return whether `prepare_expression.py` made the table, which has asked for the unit."""
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return path.with_name(f"{stem}.manifest.json").is_file()


def _read(path: str | Path) -> tuple[ExpressionTable, str]:
    """Return a table and the unit its values seem to have."""
    path = require_file(path, "expression table")
    values, facts = read_cached(path, _TableText)
    names, text = facts["names"], facts["annotations"]
    annotations = pd.read_csv(io.StringIO(text)) if text else pd.DataFrame(index=range(len(names)))
    if "tissue" not in annotations:
        annotations["tissue"] = path.name.split(".")[0]
    return ExpressionTable(names, facts["genes"], values, annotations), facts["unit"]


def read_expression_table(path: str | Path) -> ExpressionTable:
    """Return the expression table of a CSV file, plain or compressed.

    A table without a `tissue` column gets one: the file's name up to the first dot. At the first
    read the text is parsed, checked and kept in binary form beside it; the values are mapped from
    there (see `data.expression_cache`), so that they take memory only as they are used.

    Raises:
        UserError: missing file or column, no gene column, no row, a duplicated name or gene, a
            value that is missing, negative or not a number, values that look like logarithms, or a
            truncated file.
    """
    return _read(path)[0]


def check_names(names: Sequence[str], genes: Sequence[str], where: str | Path) -> None:
    """Raise a UserError that names what is at fault unless there are rows, all named once."""
    if not len(names):
        raise UserError(f"{where}: no rows")
    for what, values in (("row", names), ("gene", genes)):
        duplicated = pd.Index(values)[pd.Index(values).duplicated()]
        if len(duplicated):
            raise UserError(f"{where}: {what} {duplicated[0]} appears more than once")


def check_values(
    values: np.ndarray, names: Sequence[str], genes: Sequence[str], where: str | Path
) -> None:
    """Raise a UserError naming the first row and gene unless values (N, G) are finite, >= 0."""
    if not values.size or (values.min() >= 0 and values.max() < np.inf):  # NaN fails both
        return
    row, column = np.argwhere(~(np.isfinite(values) & (values >= 0)))[0]
    raise UserError(
        f"{where}: {names[row]}, gene {genes[column]}: {values[row, column]:g} is not an"
        " expression value (0 or more, not logged, none missing)"
    )


def read_cohort(paths: Sequence[str | Path]) -> ExpressionTable:
    """Return the tables of several tissues as one, rows in the order of the files.

    The values of several tables stay where they are: `expression` is a `StackedRows`, of which rows
    are taken as of an array.

    Raises:
        UserError: as `read_expression_table`; also when genes or units (counts, TPM) differ or a
        row name appears in two tables.
    """
    read = [_read(path) for path in paths]
    tables = [table for table, _ in read]
    for path, (table, unit) in zip(paths, read, strict=True):
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
        if {unit, read[0][1]} == {"counts", "tpm"} and len(table.genes) >= LEAST_GENES:
            raise UserError(
                f"{path}: its values look like {unit}, those of {paths[0]} like {read[0][1]};"
                " prepare_expression.py brings tables to one unit"
            )
    cohort = ExpressionTable(
        [name for table in tables for name in table.names],
        tables[0].genes,
        tables[0].expression
        if len(tables) == 1
        else StackedRows([table.expression for table in tables]),
        pd.concat([table.annotations for table in tables], ignore_index=True),
    )
    check_names(cohort.names, cohort.genes, ", ".join(str(path) for path in paths))
    return cohort


def write_expression_table(path: str | Path, table: ExpressionTable) -> None:
    """Write a table as CSV (gzipped for .gz), whole or not at all; 6 significant digits."""
    notes = table.annotations.astype(object).where(table.annotations.notna(), "")
    form = ",%.6g" * len(table.genes) + "\n"
    gzipped = functools.partial(gzip.open, compresslevel=6)
    with atomic_path(path) as temporary:
        opener = gzipped if Path(path).suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="")
            writer.writerow([NAME_COLUMN, *notes, *(GENE_PREFIX + gene for gene in table.genes)])
            handle.write("\n")
            rows = zip(table.names, notes.itertuples(index=False), strict=True)
            bar = tqdm(rows, Path(path).name, len(table), unit="row", delay=3, leave=False)
            for row, (name, note) in enumerate(bar):
                writer.writerow([name, *note])
                handle.write(form % tuple(table.expression[row].tolist()))


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
    present = np.flatnonzero(columns >= 0)
    for start in range(0, len(table), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        matched[rows, present] = table.expression[rows][:, columns[present]]
    return matched, [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
