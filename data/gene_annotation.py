"""Gene ids: Ensembl with or without version, symbols and Entrez ids through a GTF or a mapping."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data.delimited import DelimitedFile, open_text, reading
from data.expression import GENE_PREFIX
from runtime.errors import UserError
from runtime.files import require_file

# ENSGR0000182378 is how GENCODE before release 25 names ENSG00000182378_PAR_Y.
ENSEMBL_GENE = re.compile(r"ENS[A-Z]{0,6}GR?\d{6,}(\.\d+)?(_PAR_Y)?")
VERSION = re.compile(r"(\.\d+)?(_PAR_Y)?$")
PROTEIN_CODING = "protein_coding"
ENTREZ = re.compile(r"entrez[_:]?", re.IGNORECASE)


def unversioned(gene: str) -> str:
    """Return a gene id without `rna_`, version and mark of the Y copy of a pseudoautosomal gene.

    `rna_ENSG00000182378.13`, `ENSG00000182378.13_PAR_Y` and `ENSGR0000182378` are one gene.
    """
    return VERSION.sub("", gene.removeprefix(GENE_PREFIX), count=1).replace("ENSGR", "ENSG0")


def is_gene(text: object) -> bool:
    """Return whether a name is an Ensembl gene id or begins with `rna_`."""
    return isinstance(text, str) and (
        text.startswith(GENE_PREFIX) or ENSEMBL_GENE.fullmatch(text) is not None
    )


class GeneIds:
    """Which genes the ids of a table stand for.

    Args:
        ensembl_of: Ensembl ids of each symbol or Entrez id, the preferred one first.
    """

    def __init__(self, ensembl_of: Mapping[str, Sequence[str]] | None = None) -> None:
        self.ensembl_of = ensembl_of or {}

    def genes_of(self, text: str) -> Sequence[str]:
        """Return the genes that an id may stand for, the preferred one first; none: no gene id.

        An Ensembl id stands for itself; any other id for what the mapping says, with `rna_` and
        `entrez` set aside; a name with `rna_` that no mapping knows stands for itself.
        """
        plain = text.removeprefix(GENE_PREFIX)
        if ENSEMBL_GENE.fullmatch(plain):
            return (plain,)
        return self.mapped(plain) or ((plain,) if plain != text else ())

    def mapped(self, text: str) -> Sequence[str]:
        """Return what the mapping says of a symbol or Entrez id; nothing where it does not know."""
        plain = text.removeprefix(GENE_PREFIX)
        return self.ensembl_of.get(plain) or self.ensembl_of.get(ENTREZ.sub("", plain, count=1), ())

    def is_known(self, text: str) -> bool:
        """Return whether an id stands for any gene."""
        return bool(self.genes_of(text))


@dataclass
class GeneMatch:
    """How a table's genes answer to a wanted list.

    Attributes:
        matched: ids of the list that the table has.
        missing: ids of the list that it lacks.
        duplicated: further ids of the table for a gene that it has already; their values are added.
        ambiguous: ids of the table that stand for several wanted genes, and so for the first.
        unknown: ids of the table that neither are Ensembl's nor in the mapping.
    """

    matched: list[str]
    missing: list[str]
    duplicated: list[str]
    ambiguous: list[str]
    unknown: list[str]


class Target(NamedTuple):
    """Where the values of one id go: a column of the wanted list (None: nowhere), and whether it
    stands for several of them."""

    column: int | None
    is_ambiguous: bool


class GeneTargets:
    """Columns of a wanted list that a table's ids go to, and the account of it.

    Args:
        ids: what ids stand for.
        genes: the wanted list, no gene twice.
    """

    def __init__(self, ids: GeneIds, genes: Sequence[str]) -> None:
        self.ids, self.genes = ids, genes
        self.column_of = {unversioned(gene): column for column, gene in enumerate(genes)}
        self.seen: set[int] = set()
        self.duplicated: list[str] = []
        self.ambiguous: list[str] = []
        self.unknown: list[str] = []

    def take(self, text: str) -> int | None:
        """Return the column of an id of the table, None where it is not wanted, and note it."""
        candidates = self.ids.genes_of(text)
        if not candidates:
            self.unknown.append(text)
        wanted = [self.column_of.get(unversioned(gene)) for gene in candidates]
        columns = dict.fromkeys(column for column in wanted if column is not None)
        if not columns:
            return None
        if len(columns) > 1:
            self.ambiguous.append(text)
        column = next(iter(columns))
        if column in self.seen:
            self.duplicated.append(text)
        self.seen.add(column)
        return column

    def match(self) -> GeneMatch:
        """Return the account of all ids taken."""
        matched = [gene for column, gene in enumerate(self.genes) if column in self.seen]
        missing = [gene for column, gene in enumerate(self.genes) if column not in self.seen]
        return GeneMatch(matched, missing, self.duplicated, self.ambiguous, self.unknown)


class Gtf(NamedTuple):
    """Genes of an annotation: ids of each symbol, protein-coding ones first, and all
    protein-coding ids, in the order of the file."""

    ensembl_of: dict[str, list[str]]
    protein_coding: list[str]


def read_gtf(path: str | Path) -> Gtf:
    """Return the genes of a GENCODE or Ensembl GTF, plain or compressed, read line by line.

    The Y copies of pseudoautosomal genes are the same genes as their X copies.

    Raises:
        UserError: missing or truncated file, or no gene in it.

    Source: https://www.gencodegenes.org/pages/data_format.html (gene_type); Ensembl: gene_biotype.
    """
    path = require_file(path, "GTF")
    genes: dict[str, tuple[str, str, str]] = {}
    with reading(path, "GTF"), open_text(path) as (text, _):
        for line in text:
            if "\tgene\t" not in line:
                continue
            facts = dict(re.findall(r'(\w+) "([^"]*)"', line))
            if "gene_id" not in facts:
                raise UserError(f"{path}: a gene without gene_id: {line.strip()[:80]}")
            kind = facts.get("gene_type", facts.get("gene_biotype", ""))
            identity = unversioned(facts["gene_id"])
            genes.setdefault(identity, (facts["gene_id"], facts.get("gene_name", ""), kind))
    if not genes:
        raise UserError(f"{path}: no line of a gene in it; a GENCODE or Ensembl GTF is needed")
    ensembl_of: dict[str, list[str]] = {}
    for gene, name, _ in sorted(genes.values(), key=lambda fact: fact[2] != PROTEIN_CODING):
        ensembl_of.setdefault(name, []).append(gene)
    ensembl_of.pop("", None)
    coding = [gene for gene, _, kind in genes.values() if kind == PROTEIN_CODING]
    return Gtf(ensembl_of, coding)


def read_gene_map(path: str | Path, columns: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return the Ensembl ids of each symbol or Entrez id of a mapping table, in its order.

    Args:
        path: CSV or TSV with a header.
        columns: its columns of ids and of Ensembl ids; None for a table of these two, in any order.

    Raises:
        UserError: missing file or column, more than two columns and none named, or no Ensembl ids.
    """
    table = DelimitedFile(path, "gene map")
    header = table.header
    if columns is None:
        if len(header) != 2:
            raise UserError(
                f"{path}: {len(header)} columns; name the one of ids and the one of Ensembl ids:"
                f" --gene_map_columns (its columns: {', '.join(header[:8])})"
            )
        first = table.preview(20)
        columns = header if any(is_gene(cells[1]) for cells in first) else header[::-1]
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise UserError(f"{path}: no column {lacking[0]} (its columns: {', '.join(header[:8])})")
    ensembl_of: dict[str, list[str]] = {}
    for texts, _ in table.blocks([header.index(name) for name in columns], []):
        for text, gene in texts:
            known = ensembl_of.setdefault(text, [])
            if text and is_gene(gene) and gene not in known:
                known.append(gene)
    ensembl_of = {text: genes for text, genes in ensembl_of.items() if genes}
    if not ensembl_of:
        raise UserError(f"{path}: no Ensembl gene ids in column {columns[1]}")
    return ensembl_of


def read_gene_list(path: str | Path) -> list[str]:
    """Return gene ids from a list (one in a line, or the first column of a CSV), `rna_` taken off.

    The header of a table in `wsi_file_name` form is a gene list too: its `rna_` columns.

    Raises:
        UserError: missing file, no gene ids, or an id that appears twice (versions set aside).
    """
    path = require_file(path, "gene list")
    with reading(path, "gene list"), open_text(path) as (text, _):
        header = next(csv.reader(text), [])
        genes = [cell for cell in header[1:] if cell.startswith(GENE_PREFIX)]
        if not genes:
            cells = (re.split(r"[,\t;]", line)[0] for line in text)
            genes = [cell.strip().strip('"') for cell in [*header[:1], *cells]]
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


class Genes(NamedTuple):
    """What ids stand for, the wanted genes (None: those that all tables hold), and their origin."""

    ids: GeneIds
    wanted: list[str] | None
    origin: str


def read_genes(
    genes: str | None, gtf: str | None, gene_map: str | None, columns: Sequence[str] | None = None
) -> Genes:
    """Return what a gene list, a GTF and a gene map say together.

    The list says which genes are wanted; without one the GTF's protein-coding genes are. What a
    symbol stands for the map says, and the GTF where the map does not.

    Raises:
        UserError: as the three readers; also a GTF without protein-coding genes and no list.
    """
    ensembl_of: dict[str, list[str]] = {}
    wanted, origin = None, "the tables"
    if gtf:
        (ensembl_of, wanted), origin = read_gtf(gtf), gtf
    if gene_map:
        ensembl_of = ensembl_of | read_gene_map(gene_map, columns)
    if genes:
        wanted, origin = read_gene_list(genes), genes
    if wanted is not None and not wanted:
        raise UserError(f"{origin}: no protein-coding gene in it; name the genes with --genes")
    return Genes(GeneIds(ensembl_of), wanted, origin)
