"""Plain expression tables as people download them: genes in rows or columns, versions or none."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.expression import GENE_PREFIX, NAME_COLUMN, donor_of
from runtime.errors import UserError
from runtime.files import require_file

ORIENTATIONS = ("auto", "genes_in_rows", "genes_in_columns")
ENSEMBL_GENE = re.compile(r"ENS[A-Z]{0,6}G\d{6,}(\.\d+)?(_PAR_Y)?")
VERSION = re.compile(r"(\.\d+)?(_PAR_Y)?$")
# Columns of gene tables that hold numbers and are no samples.
GENE_FACTS = {"chr", "chrom", "chromosome", "start", "end", "strand", "length", "entrez"}
# Rows looked at to find the gene column of a table with genes in rows.
ROWS_LOOKED_AT = 200
# No table of counts or TPM stays below this; any table of their logarithms does.
LARGEST_LOG = 50.0
# TPM sum to 10^6 over all genes.
LARGEST_TPM_SUM = 1.2e6


@dataclass
class PlainTable:
    """N samples over G genes, as read.

    Attributes:
        names: N sample names, unique.
        genes: G gene ids as in the file, without `rna_`; may repeat.
        values: float64 (N, G), finite, >= 0.
        annotations: N rows of the other columns; none when genes are in rows.
        orientation: "genes_in_rows" or "genes_in_columns".
        ignored: rows or columns that are neither genes, samples nor annotations.
    """

    names: list[str]
    genes: list[str]
    values: np.ndarray
    annotations: pd.DataFrame
    orientation: str
    ignored: list[str]


@dataclass
class GeneMatch:
    """How a table's genes answer to a wanted list.

    Attributes:
        matched: ids of the list that the table has.
        missing: ids of the list that it lacks.
        duplicated: further columns of the table for a gene that it has already.
    """

    matched: list[str]
    missing: list[str]
    duplicated: list[str]


def unversioned(gene: str) -> str:
    """Return a gene id without `rna_`, version and `_PAR_Y` (`ENSG00000182378.13_PAR_Y`)."""
    return VERSION.sub("", gene.removeprefix(GENE_PREFIX), count=1)


def is_gene(text: object) -> bool:
    """Return whether a name is an Ensembl gene id or begins with `rna_`."""
    return isinstance(text, str) and (
        text.startswith(GENE_PREFIX) or ENSEMBL_GENE.fullmatch(text) is not None
    )


def read_plain_table(path: str | Path, orientation: str = "auto") -> PlainTable:
    """Return the samples of a CSV or TSV file, plain or gzipped.

    Genes are recognised by their ids (Ensembl, or any with `rna_`). In rows: the first column that
    holds ids names the genes, every other column of numbers is a sample. In columns:
    `wsi_file_name`, or else the first column, names the samples; the others are annotations.

    Args:
        orientation: "genes_in_rows", "genes_in_columns", or "auto" for where the ids are.

    Raises:
        UserError: missing or truncated file, no gene ids, no samples, a sample or column that
            appears twice, or a value that is missing, negative or not a number.
    """
    path = require_file(path, "expression table")
    frame = _read_frame(path)
    gene_columns = [column for column in frame.columns if is_gene(column)]
    id_column = next((name for name in frame.columns[:10] if _holds_genes(frame[name])), None)
    if orientation == "auto":
        orientation = "genes_in_columns" if gene_columns else "genes_in_rows"
    if orientation == "genes_in_columns" and gene_columns:
        table = _genes_in_columns(path, frame, gene_columns)
    elif orientation == "genes_in_rows" and id_column is not None:
        table = _genes_in_rows(path, frame, id_column)
    else:
        where = "the header" if orientation == "genes_in_columns" else "a column"
        raise UserError(
            f"{path}: no gene ids in {where}; Ensembl ids, or names that begin with"
            f" {GENE_PREFIX}, are needed (header begins: {', '.join(map(str, frame.columns[:4]))})"
        )
    _check(path, table)
    return table


def _read_frame(path: Path) -> pd.DataFrame:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as handle:
            skipped, line = 0, handle.readline()
            # Comments of featureCounts; the two header lines of GCT.
            while line.startswith("#"):
                if line.startswith("#1."):
                    handle.readline()
                    skipped += 1
                skipped, line = skipped + 1, handle.readline()
            separator = "\t" if "\t" in line else ","
            header, first = (
                next(csv.reader([text], delimiter=separator), [])
                for text in (line, handle.readline())
            )
        if len(first) == len(header) + 1:
            header = ["", *header]  # as R writes row names
        # The header is read apart because pandas renames repeated columns.
        frame = pd.read_csv(
            path, sep=separator, header=None, skiprows=skipped + 1, low_memory=False,
            names=range(len(header)), index_col=False,
        )  # fmt: skip
    except (ValueError, EOFError, zlib.error, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    frame.columns = pd.Index(header, dtype=object)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise UserError(f"{path}: column {twice[0]} appears more than once")
    if frame.empty:
        raise UserError(f"{path}: no rows")
    return frame


def _holds_genes(column: pd.Series) -> bool:
    looked_at = column.iloc[:ROWS_LOOKED_AT]
    return sum(map(is_gene, looked_at)) > len(looked_at) / 2


def _genes_in_columns(path: Path, frame: pd.DataFrame, gene_columns: list[str]) -> PlainTable:
    name_column = NAME_COLUMN if NAME_COLUMN in frame else frame.columns[0]
    if is_gene(name_column):
        raise UserError(
            f"{path}: the first column, {name_column}, is a gene; sample names go there"
        )
    others = frame.drop(columns=[name_column, *gene_columns])
    names = frame[name_column]
    return PlainTable(
        _names(path, names),
        [gene.removeprefix(GENE_PREFIX) for gene in gene_columns],
        _numbers(path, frame[gene_columns], names),
        others.reset_index(drop=True),
        "genes_in_columns",
        [],
    )


def _genes_in_rows(path: Path, frame: pd.DataFrame, id_column: str) -> PlainTable:
    is_gene_row = frame[id_column].map(is_gene).to_numpy(bool)
    no_genes = frame.loc[~is_gene_row, id_column].astype(str).tolist()
    frame = frame[is_gene_row]
    samples, ignored = [], []
    for column in frame.columns.drop(id_column):
        is_text = pd.to_numeric(frame[column], errors="coerce").isna().mean() > 0.5
        is_fact = str(column).lower() in GENE_FACTS
        (ignored if is_text or is_fact else samples).append(column)
    if not samples:
        raise UserError(f"{path}: no column of numbers beside the gene ids in {id_column!r}")
    return PlainTable(
        _names(path, pd.Series(samples)),
        [gene.removeprefix(GENE_PREFIX) for gene in frame[id_column]],
        _numbers(path, frame[samples], frame[id_column]).T,
        pd.DataFrame(index=range(len(samples))),
        "genes_in_rows",
        [*map(str, ignored), *no_genes],
    )


def _names(path: Path, column: pd.Series) -> list[str]:
    names = column.fillna("").astype(str).str.strip().tolist()
    if "" in names:
        raise UserError(f"{path}: sample {names.index('') + 1} has no name")
    return names


def _numbers(path: Path, frame: pd.DataFrame, row_names: pd.Series) -> np.ndarray:
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            text = pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()
            row = int(np.argmax(text))
            raise UserError(
                f"{path}: {row_names.iloc[row]}, {column}: {frame[column].iloc[row]!r}"
                " is not a number"
            )
    return frame.to_numpy(np.float64)


def _check(path: Path, table: PlainTable) -> None:
    twice = pd.Index(table.names)[pd.Index(table.names).duplicated()]
    if len(twice):
        raise UserError(f"{path}: sample {twice[0]} appears more than once")
    bad = ~(np.isfinite(table.values) & (table.values >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{path}: {table.names[row]}, gene {table.genes[column]}: {table.values[row, column]:g}"
            " is not an expression value (0 or more, not logged, none missing)"
        )


def guess_unit(values: np.ndarray) -> str:
    """Return "counts", "tpm" or "log" for values (N, G).

    Whole numbers are counts; so are broken ones (medians, expected counts) whose sum no TPM reach.
    """
    if np.array_equal(values, np.round(values)):
        return "counts"
    if values.max() < LARGEST_LOG:
        return "log"
    return "counts" if np.median(values.sum(axis=1)) > LARGEST_TPM_SUM else "tpm"


def counts_per_million(values: np.ndarray) -> np.ndarray:
    """Return values (N, G) scaled to a sum of 10^6 in each row; rows of zeros stay."""
    totals = values.sum(axis=1, keepdims=True)
    return values * 1e6 / np.where(totals > 0, totals, 1)


def read_gene_list(path: str | Path) -> list[str]:
    """Return gene ids from a list (one in a line, or the first column of a CSV), `rna_` taken off.

    The header of a table in `wsi_file_name` form is a gene list too: its `rna_` columns.

    Raises:
        UserError: missing file, no gene ids, or an id that appears twice (versions set aside).
    """
    path = require_file(path, "gene list")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as handle:
            header = next(csv.reader(handle), [])
            genes = [cell for cell in header[1:] if cell.startswith(GENE_PREFIX)]
            if not genes:
                cells = (re.split(r"[,\t;]", line)[0] for line in handle)
                genes = [text.strip().strip('"') for text in [*header[:1], *cells]]
    except (ValueError, EOFError, zlib.error, OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a gene list ({error})") from error
    genes = [gene for gene in genes if gene]
    if genes and not is_gene(genes[0]) and len(genes) > 1 and is_gene(genes[1]):
        genes = genes[1:]  # a header
    if not genes or not any(map(is_gene, genes)):
        raise UserError(f"{path}: no gene ids; one Ensembl id in a line is needed")
    genes = [gene.removeprefix(GENE_PREFIX) for gene in genes]
    plain = pd.Index([unversioned(gene) for gene in genes])
    if plain.has_duplicates:
        raise UserError(f"{path}: gene {plain[plain.duplicated()][0]} is listed more than once")
    return genes


def distinct_genes(tables: Sequence[PlainTable]) -> list[str]:
    """Return the genes that all tables hold, as the first one writes them and in its order."""
    shared = set.intersection(*({unversioned(gene) for gene in table.genes} for table in tables))
    first: dict[str, str] = {}
    for gene in tables[0].genes:
        first.setdefault(unversioned(gene), gene)
    return [gene for plain, gene in first.items() if plain in shared]


def select_genes(table: PlainTable, genes: Sequence[str]) -> tuple[np.ndarray, GeneMatch]:
    """Return the values of `genes`, matched without version, and how they matched.

    Columns of the table that are the same gene are summed; genes it lacks are 0.

    Returns:
        float64 (N, len(genes)); the match.
    """
    column_of = {unversioned(gene): column for column, gene in enumerate(genes)}
    values = np.zeros((len(table.names), len(genes)))
    seen: set[int] = set()
    duplicated = []
    sources, targets = [], []
    for source, gene in enumerate(table.genes):
        target = column_of.get(unversioned(gene))
        if target is None:
            continue
        if target in seen:
            duplicated.append(gene)
            values[:, target] += table.values[:, source]
        else:
            sources.append(source)
            targets.append(target)
        seen.add(target)
    values[:, targets] += table.values[:, sources]
    matched = [gene for column, gene in enumerate(genes) if column in seen]
    missing = [gene for column, gene in enumerate(genes) if column not in seen]
    return values, GeneMatch(matched, missing, duplicated)


def pair_slides(names: Sequence[str], slides: Iterable[str]) -> list[str | None]:
    """Return the slide of each sample, or None: same donor, block number one below the aliquot's.

    `GTEX-1117F-3226-SM-5N9CT` belongs to the slide `GTEX-1117F-3225.svs`. A sample named as a slide
    is that slide's. Of several samples of a slide the first has it.

    Source: GTEx sample naming.
    """
    slide_of = {Path(slide).stem: slide for slide in slides}
    pairs: list[str | None] = []
    taken: set[str] = set()
    for name in names:
        fields = name.split("-")
        wanted = name.removesuffix(".svs")
        if wanted not in slide_of and len(fields) > 2 and fields[2].isdigit():
            block = str(int(fields[2]) - 1).zfill(len(fields[2]))
            wanted = f"{donor_of(name)}-{block}"
        slide = slide_of.get(wanted)
        pairs.append(None if slide is None or slide in taken else slide)
        taken.add(slide or "")
    return pairs
