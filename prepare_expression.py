"""Plain expression tables to the form that other stages read: `wsi_file_name`, then `rna_` columns.

Prepares the betaVAE's input as RNA-GAN describes it (Cell Reports Methods 2023, 3:100534): a table
per tissue, rows named after the slide of the same block where there is one, else after the aliquot.

Inputs:  one or more tables, CSV or TSV, plain or .gz, genes in rows or in columns, Ensembl ids with
         or without version; counts, TPM or counts per million, not logged.
Outputs: FILE.csv, FILE.manifest.json (units, genes matched, missing and duplicated, slides paired),
         FILE.request.json (what was asked for: the same command again repeats nothing).

Rules: ids are matched without version; columns of the same gene are summed; genes that a table
lacks are 0; counts become counts per million over all genes of their table, TPM stay as they are.

    python3 prepare_expression.py --input gene_counts_lung.csv.gz --genes protein_coding.csv \\
        --slides GTEX/lung --tissue lung --output ref_files/lung.csv
    python3 prepare_expression.py --input demo/cohort/expression/lung_counts.csv.gz \\
        --slides demo/cohort/slides/lung --tissue lung --output demo/expression/lung.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.expression import ExpressionTable, check_expression, write_expression_table
from data.plain_tables import (
    ORIENTATIONS,
    PlainTable,
    counts_per_million,
    distinct_genes,
    guess_unit,
    pair_slides,
    read_gene_list,
    read_plain_table,
    select_genes,
)
from data.tiles import SLIDE_SUFFIXES
from runtime.errors import UserError, run_script
from runtime.files import require_file, require_folder, sha256_of, write_json
from runtime.run import already_done, log, start_log

MIN_MATCHED = 0.5
UNITS = ("auto", "counts", "tpm", "cpm")
NORMALIZATIONS = ("auto", "none", "cpm")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    files = parser.add_argument_group("input and output")
    files.add_argument("--input", required=True, nargs="+", metavar="TABLE", help="plain tables")
    files.add_argument("--output", required=True, help="table to write, .csv or .csv.gz")
    files.add_argument("--overwrite", action="store_true", help="replace what is there")
    files.add_argument(
        "--orientation", choices=ORIENTATIONS, default="auto", help="auto: by where gene ids are"
    )
    genes = parser.add_argument_group("genes")
    genes.add_argument("--genes", metavar="FILE", help="gene list that fixes set and order")
    genes.add_argument(
        "--min_matched",
        type=float,
        default=MIN_MATCHED,
        help="least share of --genes in each table",
    )
    values = parser.add_argument_group("values")
    values.add_argument(
        "--unit", choices=UNITS, default="auto", help="auto: told from the values (whole: counts)"
    )
    values.add_argument(
        "--normalize", choices=NORMALIZATIONS, default="auto",
        help="auto: counts to counts per million, others none",
    )  # fmt: skip
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--slides", metavar="DIR", help="folder of slides (or tile stores) to pair with"
    )
    rows.add_argument("--tissue", help="value of the column tissue")
    return parser


def convert_values(
    path: str, values: np.ndarray, unit: str, normalize: str
) -> tuple[np.ndarray, str, str]:
    """Return the values (N, G) to keep, the unit they had and the normalization done."""
    if unit == "auto":
        unit = guess_unit(values)
        if unit == "log":
            raise UserError(
                f"{path}: the largest value is {values.max():.4g}, which looks like logarithms;"
                " undo the logarithm, or state --unit if the values are unlogged"
            )
    if normalize == "auto":
        normalize = "cpm" if unit == "counts" else "none"
    return counts_per_million(values) if normalize == "cpm" else values, unit, normalize


def prepare_table(
    path: str, table: PlainTable, genes: list[str], arguments: argparse.Namespace
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the values of the wanted genes and the table's entry of the manifest."""
    empty = table.values.sum(axis=1) == 0
    if empty.any():
        raise UserError(f"{path}: sample {table.names[int(empty.argmax())]} is 0 in all genes")
    table.values, unit, normalize = convert_values(
        path, table.values, arguments.unit, arguments.normalize
    )
    values, match = select_genes(table, genes)
    if len(match.matched) < arguments.min_matched * len(genes):
        raise UserError(
            f"{path}: holds {len(match.matched)} of the {len(genes)} genes of {arguments.genes},"
            f" fewer than --min_matched {arguments.min_matched:g} (first missing:"
            f" {match.missing[0]})"
        )
    log.info(
        "%s: %d samples, %s, unit %s, normalization %s; genes: %d matched, %d missing (set to 0),"
        " %d duplicated (summed)",
        path, len(table.names), table.orientation, unit, normalize, len(match.matched),
        len(match.missing), len(match.duplicated),
    )  # fmt: skip
    entry = {
        "path": path,
        "sha256": sha256_of(path),
        "samples": len(table.names),
        "genes_in_table": len(table.genes),
        "orientation": table.orientation,
        "ignored": table.ignored,
        "unit": unit,
        "normalization": normalize,
        "matched": len(match.matched),
        "missing": match.missing,
        "duplicated": match.duplicated,
    }
    return values, entry


def name_rows(names: list[str], slides_path: str | None) -> tuple[list[str], int]:
    """Return the rows' names, slides where a sample has one, and the number of those."""
    if slides_path is None:
        return names, 0
    slides = [
        entry.name
        for entry in sorted(Path(slides_path).iterdir())
        if entry.suffix.lower() in SLIDE_SUFFIXES
    ]
    pairs = pair_slides(names, slides)
    paired = sum(pair is not None for pair in pairs)
    if not paired:
        raise UserError(
            f"{slides_path}: none of its {len(slides)} slides belongs to a sample (first sample:"
            f" {names[0]}; wanted: same donor, block number one less)"
        )
    log.info("%d of %d samples have a slide; %d slides", paired, len(names), len(slides))
    return [pair or name for pair, name in zip(pairs, names, strict=True)], paired


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the tables of the command line as one."""
    # Arguments
    arguments = build_parser().parse_args(argv)
    start_log()
    if not 0 <= arguments.min_matched <= 1:
        raise UserError(f"--min_matched {arguments.min_matched}: 0 to 1 is needed")
    output = Path(arguments.output)
    if not output.name.endswith((".csv", ".csv.gz")):
        raise UserError(f"--output {output}: a name that ends in .csv or .csv.gz is needed")
    stem = output.name.removesuffix(".gz").removesuffix(".csv")
    manifest_path, record = (
        output.with_name(f"{stem}.{what}.json") for what in ("manifest", "request")
    )
    inputs = [str(require_file(path, "expression table")) for path in arguments.input]
    request = {
        **{key: value for key, value in vars(arguments).items() if key != "overwrite"},
        "sha256": [sha256_of(path) for path in inputs],
        "genes_sha256": sha256_of(require_file(arguments.genes, "gene list"))
        if arguments.genes
        else None,
        "slide_names": sorted(
            entry.name for entry in require_folder(arguments.slides, "slide folder").iterdir()
        )
        if arguments.slides
        else None,
    }
    if already_done(record, request, [output, manifest_path], arguments.overwrite):
        return

    # Data
    tables = [read_plain_table(path, arguments.orientation) for path in inputs]
    genes = read_gene_list(arguments.genes) if arguments.genes else distinct_genes(tables)
    parts, entries = [], []
    for path, table in zip(inputs, tables, strict=True):
        values, entry = prepare_table(path, table, genes, arguments)
        parts.append(values.astype(np.float32))
        entries.append(entry)
    names = [name for table in tables for name in table.names]
    row_names, paired = name_rows(names, arguments.slides)
    annotations = pd.concat([table.annotations for table in tables], ignore_index=True)
    if arguments.slides:
        annotations["sample"] = names
    if arguments.tissue:
        annotations["tissue"] = arguments.tissue
    table = ExpressionTable(row_names, genes, np.concatenate(parts), annotations)
    check_expression(table, ", ".join(inputs))

    # Results
    manifest = {
        "output": str(output),
        "rows": len(table),
        "genes": len(genes),
        "rows_with_a_slide": paired,
        "rules": "ids without version; same gene summed; missing gene 0; counts per million"
        " over all genes of the input",
        "inputs": entries,
    }
    write_expression_table(output, table)
    write_json(manifest_path, manifest)
    write_json(record, request)
    log.info(
        "%s: %d samples x %d genes (report: %s)", output, len(table), len(genes), manifest_path
    )
    return None


if __name__ == "__main__":
    run_script(main)
