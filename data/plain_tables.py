"""Expression tables as people download them: genes in rows or columns, CSV, TSV or GCT, any ids.

Read as a stream: of a table of 17,382 samples and 56,200 genes only the wanted samples and genes
are kept in memory.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.delimited import BLANK, DelimitedFile
from data.expression import GENE_PREFIX, NAME_COLUMN, check_values
from data.gene_annotation import GeneIds, GeneMatch, GeneTargets, unversioned
from data.units import LOGARITHMS, ValueFacts
from runtime.errors import UserError

ORIENTATIONS = ("auto", "genes_in_rows", "genes_in_columns")
# Columns of gene tables that hold numbers and are no samples.
GENE_FACTS = {
    "chr", "chrom", "chromosome", "start", "end", "strand", "length", "gene_length", "width",
    "entrez", "entrezid", "entrez_id",
}  # fmt: skip
# Rows of counting programs that are no genes (HTSeq, STAR), and spike-ins.
NO_GENE = re.compile(r"__|N_(unmapped|multimapping|noFeature|ambiguous)$|ERCC-")
# Where the gene column is looked for, and rows looked at to tell numbers from text.
FIRST_COLUMNS, ROWS_OF_IDS, ROWS_OF_CELLS = 10, 200, 20


@dataclass
class PlainTable:
    """N samples over G wanted genes.

    Attributes:
        names: N sample names, unique.
        values: float32 (N, G), finite, >= 0; ids of the same gene added up, 0 for a gene it lacks.
        annotations: N rows of the other columns; none when genes are in rows.
        facts: of all genes of the table, wanted or not.
        match: how its genes answer to the wanted ones.
        genes_in_table: number of its gene ids.
        ignored: rows or columns that are neither genes, samples nor annotations.
    """

    names: list[str]
    values: np.ndarray
    annotations: pd.DataFrame
    facts: ValueFacts
    match: GeneMatch
    genes_in_table: int
    ignored: list[str]


class PlainFile:
    """A table of which it is known where genes and samples are; its values are not yet read.

    Genes are recognised by their ids: Ensembl's, any with `rna_`, and those that `ids` maps. In
    rows: the first column that holds ids names the genes, every other column of numbers is a
    sample. In columns: `wsi_file_name`, or else the first column, names the samples; others are
    annotations, or genes of unknown name where they are numbers among mapped names.

    Args:
        path: CSV, TSV or GCT, plain or compressed.
        ids: what gene ids stand for.
        orientation: "genes_in_rows", "genes_in_columns", or "auto" for where the ids are.

    Raises:
        UserError: missing or truncated file, no gene ids, no samples, a sample or column that
            appears twice; on reading, a value that is missing, negative or not a number.
    """

    def __init__(self, path: str | Path, ids: GeneIds, orientation: str = "auto") -> None:
        self.file = DelimitedFile(path, "expression table", may_repeat=ids.is_known)
        self.path, self.ids = self.file.path, ids
        self.ignored: list[str] = []
        header = self.file.header
        known = [column for column, name in enumerate(header) if ids.is_known(name)]
        self.id_column = self._find_id_column()
        if orientation == "auto":
            in_rows = self.id_column is not None and len(known) <= len(header) / 2
            orientation = "genes_in_rows" if in_rows or not known else "genes_in_columns"
        self.orientation = orientation
        if orientation == "genes_in_columns" and known:
            self._find_gene_columns(known)
        elif orientation == "genes_in_rows" and self.id_column is not None:
            self._find_samples()
        else:
            where = "the header" if orientation == "genes_in_columns" else "a column"
            raise UserError(
                f"{self.path}: no gene ids in {where}; Ensembl ids, or names that begin with"
                f" {GENE_PREFIX}, are needed, or --gtf or --gene_map for symbols and Entrez ids"
                f" (header begins: {', '.join(header[:4])})"
            )

    def _find_id_column(self) -> int | None:
        rows = self.file.preview(ROWS_OF_IDS, FIRST_COLUMNS)
        for column in range(len(rows[0])):
            if sum(self.ids.is_known(cells[column]) for cells in rows) > len(rows) / 2:
                return column
        return None

    def _text_columns(self) -> set[int]:
        rows = self.file.preview(ROWS_OF_CELLS)
        return {
            column
            for column in range(len(self.file.header))
            if sum(not _is_number(cells[column]) for cells in rows) > len(rows) / 2
        }

    def _find_samples(self) -> None:
        header, text = self.file.header, self._text_columns()
        self.samples = []
        for column, name in enumerate(header):
            if column == self.id_column:
                continue
            if column in text or name.lower() in GENE_FACTS:
                self.ignored.append(name)
            elif name.strip():
                self.samples.append(column)
            else:
                raise UserError(f"{self.path}: sample {len(self.samples) + 1} has no name")
        if not self.samples:
            raise UserError(
                f"{self.path}: no column of numbers beside the gene ids in"
                f" {header[self.id_column]!r}"
            )

    def _find_gene_columns(self, known: list[int]) -> None:
        header = self.file.header
        self.name_column = header.index(NAME_COLUMN) if NAME_COLUMN in header else 0
        if self.name_column in known:
            raise UserError(
                f"{self.path}: the first column, {header[self.name_column]}, is a gene; sample"
                " names go there"
            )
        self.genes = known
        if any(self.ids.mapped(header[column]) for column in known):
            # Names are mapped, so one that is not known may be a gene as well.
            text = self._text_columns()
            numbers = (column for column in range(known[0], len(header)) if column not in text)
            self.genes = sorted({*known, *numbers} - {self.name_column})
        taken = {self.name_column, *self.genes}
        self.notes = [column for column in range(len(header)) if column not in taken]

    def gene_ids(self) -> list[str]:
        """Return the ids of its genes; the file is read for it where they are in rows."""
        if self.orientation == "genes_in_columns":
            return [self.file.header[column] for column in self.genes]
        texts = (block.texts for block in self.file.blocks([self.id_column], []))
        return [text for cells in texts for (text,) in cells if self._is_gene_row(text)]

    def _is_gene_row(self, text: str) -> bool:
        if self.ids.is_known(text):
            return True
        return bool(self.ids.ensembl_of) and NO_GENE.match(text) is None

    def read(
        self,
        genes: Sequence[str],
        samples: Container[str] | None = None,
        logarithm: str | None = None,
    ) -> PlainTable:
        """Return the values of `genes`, matched without version.

        Args:
            genes: G wanted ids.
            samples: those to keep; None for all.
            logarithm: key of LOGARITHMS, to be undone; negative values are then allowed.
        """
        targets = GeneTargets(self.ids, genes)
        if self.orientation == "genes_in_columns":
            table = self._read_rows(targets, samples, logarithm)
        else:
            table = self._read_columns(targets, samples, logarithm)
        twice = pd.Index(table.names)[pd.Index(table.names).duplicated()]
        if len(twice):
            raise UserError(f"{self.path}: sample {twice[0]} appears more than once")
        return table

    def _read_columns(
        self, targets: GeneTargets, samples: Container[str] | None, logarithm: str | None
    ) -> PlainTable:
        header = self.file.header
        columns = [c for c in self.samples if samples is None or header[c].strip() in samples]
        names = [header[column].strip() for column in columns]
        self._check_any(names, header[self.samples[0]])
        values = np.zeros((len(targets.genes), len(columns)), np.float32)
        facts, ignored, count = None, list(self.ignored), 0
        for texts, block in self.file.blocks([self.id_column], columns):
            ids = [text for (text,) in texts]
            is_row = np.array([self._is_gene_row(text) for text in ids])
            ignored += [text for text, kept in zip(ids, is_row, strict=True) if not kept]
            ids = [text for text, kept in zip(ids, is_row, strict=True) if kept]
            if not ids:
                continue
            rows = self._checked(block[is_row].T, names, ids, logarithm)  # (N, n)
            more = ValueFacts.of(rows)
            facts = more if facts is None else facts.and_genes(more)
            count += len(ids)
            for row, text in enumerate(ids):
                target = targets.take(text)
                if target is not None:
                    values[target] += rows[:, row]
        if facts is None:
            raise UserError(f"{self.path}: no rows of genes")
        notes = pd.DataFrame(index=range(len(names)))
        return PlainTable(names, values.T, notes, facts, targets.match(), count, ignored)

    def _read_rows(
        self, targets: GeneTargets, samples: Container[str] | None, logarithm: str | None
    ) -> PlainTable:
        header = self.file.header
        ids = [header[column] for column in self.genes]
        columns = [targets.take(text) for text in ids]
        first: dict[int, int] = {}  # column of the wanted list to that of the table
        again = []
        for number, column in enumerate(columns):
            if column is not None and first.setdefault(column, number) != number:
                again.append((column, number))
        names: list[str] = []
        notes: list[list[str]] = []
        parts, facts, seen = [], [], 0
        for texts, block in self.file.blocks([self.name_column, *self.notes], self.genes):
            found = [cells[0].strip() for cells in texts]
            if "" in found:
                raise UserError(f"{self.path}: sample {seen + found.index('') + 1} has no name")
            seen += len(found)
            kept = [row for row, name in enumerate(found) if samples is None or name in samples]
            if not kept:
                continue
            found = [found[row] for row in kept]
            rows = self._checked(block[kept], found, ids, logarithm)  # (n, genes in table)
            part = np.zeros((len(kept), len(targets.genes)), np.float32)
            part[:, list(first)] = rows[:, list(first.values())]
            for column, number in again:
                part[:, column] += rows[:, number]
            names += found
            notes += [texts[row][1:] for row in kept]
            parts.append(part)
            facts.append(ValueFacts.of(rows))
        self._check_any(names, header[self.name_column])
        annotations = pd.DataFrame(notes, columns=[header[column] for column in self.notes])
        for column in annotations:
            annotations[column] = _typed(annotations[column])
        return PlainTable(
            names, np.concatenate(parts), annotations, ValueFacts.joined(facts), targets.match(),
            len(ids), list(self.ignored),
        )  # fmt: skip

    def _checked(
        self, values: np.ndarray, names: list[str], ids: list[str], logarithm: str | None
    ) -> np.ndarray:
        if logarithm is not None:
            with np.errstate(over="ignore"):  # infinite values are refused below
                values = LOGARITHMS[logarithm](values)
        check_values(values, names, [text.removeprefix(GENE_PREFIX) for text in ids], self.path)
        return values

    def _check_any(self, names: list[str], first: str) -> None:
        if not names:
            raise UserError(f"{self.path}: none of the wanted samples is in it (has: {first}, ...)")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _typed(column: pd.Series) -> pd.Series:
    """Return a column of numbers as numbers, another as it is."""
    blank = column.str.strip().str.lower().isin(BLANK)
    try:
        return pd.to_numeric(column.mask(blank))
    except ValueError:
        return column


def distinct_genes(files: Sequence[PlainFile]) -> list[str]:
    """Return the genes that all tables hold, as the first one has them and in its order."""
    gene_lists = [
        [genes[0] for genes in map(file.ids.genes_of, file.gene_ids()) if genes] for file in files
    ]
    shared = set.intersection(*({unversioned(gene) for gene in genes} for genes in gene_lists))
    first: dict[str, str] = {}
    for gene in gene_lists[0]:
        first.setdefault(unversioned(gene), gene)
    return [gene for plain, gene in first.items() if plain in shared]
