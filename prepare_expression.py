"""Plain expression tables to the form that other stages read: `wsi_file_name`, then `rna_` columns.

Prepares the betaVAE's input as RNA-GAN describes it (Cell Reports Methods 2023, 3:100534): a table
per tissue, rows named after the slide of the same block where there is one, else after the aliquot.

Inputs:  one or more tables, CSV, TSV or GCT, plain or compressed, genes in rows or in columns;
         Ensembl ids with or without version, or symbols or Entrez ids with --gtf or --gene_map;
         counts, TPM or counts per million, or their logarithms with --unit.
Outputs: FILE.csv, its binary form in .expression_cache, FILE.manifest.json (what came from where:
         units, genes matched, missing and duplicated, slides paired), FILE.request.json (what was
         asked for: the same command again repeats nothing).

Rules: ids are matched without version, and the `_PAR_Y` copy of a gene is that gene; values of the
same gene are added; a symbol of several wanted genes stands for the first of them; genes that a
table lacks are 0; counts become counts per million over all genes of their table, TPM stay.

    python3 prepare_expression.py --input GTEx_Analysis_v8_gene_tpm.gct.gz \\
        --attributes GTEx_Analysis_v8_Annotations_SampleAttributesDS.txt --tissue "Lung" \\
        --gtf gencode.v26.GRCh38.genes.gtf --slides GTEX/lung --output ref_files/lung.csv
    python3 prepare_expression.py --input demo/cohort/expression/lung_counts.csv.gz \\
        --slides demo/cohort/slides/lung --tissue lung --output demo/expression/lung.csv
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.expression import (
    ExpressionTable,
    check_names,
    read_expression_table,
    write_expression_table,
)
from data.gene_annotation import read_genes
from data.plain_tables import ORIENTATIONS, PlainFile, PlainTable, distinct_genes
from data.sample_attributes import (
    SAMPLE_COLUMN,
    TISSUE_COLUMN,
    pair_slides,
    read_tissues,
    slide_names,
)
from data.units import LOGARITHMS, normalized
from runtime.dry_run import add_dry_run, dry_run_lines, scratch_trial
from runtime.errors import UserError, run_script
from runtime.files import require_file, sha256_of, write_json
from runtime.run import already_done, log, start_log

MIN_MATCHED = 0.5
TRIAL_ROWS = 64
UNITS = ("auto", "counts", "tpm", "cpm", *LOGARITHMS)
NORMALIZATIONS = ("auto", "none", "cpm")
RULES = (
    "ids without version, _PAR_Y as its gene; same gene added; a symbol of several genes: the first"
    " wanted one; missing gene 0; counts per million over all genes of the input"
)


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
        "--gtf", metavar="FILE",
        help="GENCODE or Ensembl GTF: what symbols stand for, and, without --genes, the set: its"
        " protein-coding genes",
    )  # fmt: skip
    genes.add_argument(
        "--gene_map", metavar="FILE", help="table of symbols or Entrez ids and Ensembl ids"
    )
    genes.add_argument(
        "--gene_map_columns", nargs=2, metavar=("ID", "ENSEMBL"),
        help="its columns, where it has more than two",
    )  # fmt: skip
    genes.add_argument(
        "--min_matched", type=float, default=MIN_MATCHED,
        help="least share of the wanted genes that each table holds, not 0 in all samples",
    )  # fmt: skip
    values = parser.add_argument_group("values")
    values.add_argument(
        "--unit", choices=UNITS, default="auto",
        help="auto: told from the values (whole: counts); log2 is undone by 2^x, log2p1 by 2^x - 1",
    )  # fmt: skip
    values.add_argument(
        "--normalize", choices=NORMALIZATIONS, default="auto",
        help="auto: counts to counts per million, others none",
    )  # fmt: skip
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--attributes", metavar="FILE", help="table of sample attributes that chooses the samples"
    )
    rows.add_argument(
        "--attributes_columns", nargs=2, metavar=("SAMPLE", "TISSUE"),
        default=[SAMPLE_COLUMN, TISSUE_COLUMN], help="its columns",
    )  # fmt: skip
    rows.add_argument(
        "--tissue", help="with --attributes: the tissue to take; else value of the column tissue"
    )
    rows.add_argument(
        "--slides", metavar="PATH",
        help="folder of slides (or tile stores), or a list of their names, to pair with",
    )  # fmt: skip
    add_dry_run(parser)
    return parser


def check_matched(
    path: Path, table: PlainTable, genes: list[str], origin: str, least: float
) -> None:
    """Raise a UserError when the table holds, or expresses, too few of the wanted genes."""
    match = table.match
    expressed = int((table.values.max(axis=0) > 0).sum())
    for verb, count in (("holds", len(match.matched)), ("expresses", expressed)):
        if count < least * len(genes):
            missing = f" (first missing: {match.missing[0]})" if match.missing else ""
            raise UserError(
                f"{path}: {verb} {count} of the {len(genes)} genes of {origin}, fewer than"
                f" --min_matched {least:g}{missing}"
            )


def prepare_table(
    file: PlainFile, table: PlainTable, genes: list[str], origin: str, options: argparse.Namespace
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the values of the wanted genes (N, G) and the table's entry of the manifest."""
    try:
        values, unit, normalize = normalized(
            table.values, table.facts, table.names, options.unit, options.normalize
        )
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
    check_matched(file.path, table, genes, origin, options.min_matched)
    match = table.match
    log.info(
        "%s: %d samples, %s, unit %s, normalization %s; genes: %d matched, %d missing (set to 0),"
        " %d duplicated (added), %d ambiguous (the first), %d unknown",
        file.path, len(table.names), file.orientation, unit, normalize, len(match.matched),
        len(match.missing), len(match.duplicated), len(match.ambiguous), len(match.unknown),
    )  # fmt: skip
    entry = {
        "path": str(file.path),
        "samples": len(table.names),
        "genes_in_table": table.genes_in_table,
        "orientation": file.orientation,
        "unit": unit,
        "normalization": normalize,
        "matched": len(match.matched),
        "missing": match.missing,
        "duplicated": match.duplicated,
        "ambiguous": match.ambiguous,
        "unknown": match.unknown,
        "ignored": table.ignored,
    }
    return values, entry


def check_one_unit(entries: list[dict[str, Any]], normalize: str) -> None:
    """Raise a UserError when tables of several units would be joined as they are."""
    first = entries[0]
    for entry in entries[1:]:
        if entry["unit"] != first["unit"] and normalize != "cpm":
            raise UserError(
                f"{entry['path']}: unit {entry['unit']}, but {first['path']} has {first['unit']};"
                " prepare them apart, or bring both to counts per million with --normalize cpm"
            )


def name_rows(names: list[str], slides_path: str) -> tuple[list[str], int]:
    """Return the rows' names, slides where a sample has one, and the number of those."""
    slides = slide_names(slides_path)
    pairs = pair_slides(names, slides)
    paired = sum(pair is not None for pair in pairs)
    if not paired:
        raise UserError(
            f"{slides_path}: none of its {len(slides)} slides belongs to a sample (first sample:"
            f" {names[0]}; wanted: same donor, block number one less)"
        )
    log.info("%d of %d samples have a slide; %d slides", paired, len(names), len(slides))
    return [pair or name for pair, name in zip(pairs, names, strict=True)], paired


def join_rows(
    files: list[PlainFile],
    tables: list[PlainTable],
    tissues: dict[str, str] | None,
    arguments: argparse.Namespace,
) -> tuple[list[str], pd.DataFrame, int]:
    """Return the rows' names, their annotations and how many have a slide."""
    names = [name for table in tables for name in table.names]
    notes = pd.concat([table.annotations for table in tables], ignore_index=True)
    row_names, paired = names, 0
    if arguments.slides:
        row_names, paired = name_rows(names, arguments.slides)
        notes["sample"] = names
    if len(files) > 1:
        stems = [file.path.name.split(".")[0] for file in files]
        notes["series"] = np.repeat(stems, [len(table.names) for table in tables])
    if tissues is not None:
        notes["tissue"] = [tissues[name] for name in names]
    elif arguments.tissue:
        notes["tissue"] = arguments.tissue
    return row_names, notes, paired


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the tables of the command line as one."""
    # Arguments
    began = time.perf_counter()
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
    about = {
        "gene list": arguments.genes, "GTF": arguments.gtf, "gene map": arguments.gene_map,
        "table of sample attributes": arguments.attributes,
    }  # fmt: skip
    sources = dict.fromkeys(arguments.input, "expression table")
    sources |= {path: what for what, path in about.items() if path}
    request = {
        **{
            key: value
            for key, value in vars(arguments).items()
            if key not in ("overwrite", "dry_run")
        },
        "sha256": {path: sha256_of(require_file(path, what)) for path, what in sources.items()},
        "slide_names": slide_names(arguments.slides) if arguments.slides else None,
    }
    if already_done(record, request, [output, manifest_path], arguments.overwrite):
        return

    # Data
    ids, genes, origin = read_genes(
        arguments.genes, arguments.gtf, arguments.gene_map, arguments.gene_map_columns
    )
    files = [PlainFile(path, ids, arguments.orientation) for path in arguments.input]
    tissues = None
    if arguments.attributes:
        tissues = read_tissues(
            arguments.attributes, arguments.tissue, *arguments.attributes_columns
        )
    if genes is None:
        genes = distinct_genes(files)
        if not genes:
            raise UserError(f"{', '.join(arguments.input)}: no gene is in all tables")
    logarithm = arguments.unit if arguments.unit in LOGARITHMS else None
    tables, entries, parts = [], [], []
    for path, file in zip(arguments.input, files, strict=True):
        table = file.read(genes, tissues, logarithm)
        values, entry = prepare_table(file, table, genes, origin, arguments)
        tables.append(table)
        parts.append(values)
        entries.append({"sha256": request["sha256"][path], **entry})
    check_one_unit(entries, arguments.normalize)
    row_names, notes, paired = join_rows(files, tables, tissues, arguments)
    expression = parts[0] if len(parts) == 1 else np.concatenate(parts)
    table = ExpressionTable(row_names, genes, expression, notes)
    check_names(row_names, genes, ", ".join(arguments.input))
    silent = [genes[column] for column in np.flatnonzero(expression.max(axis=0) == 0)]
    log.info("%d genes are 0 in all samples", len(silent))

    if arguments.dry_run:
        facts = {"samples": len(table), "with a slide": paired, "genes": len(genes)}
        seconds = time.perf_counter() - began

        def write(folder: Path) -> int:
            rows = table.rows(range(min(len(table), TRIAL_ROWS)))
            write_expression_table(folder / output.name, rows)
            return len(rows)

        each, size = scratch_trial(write)
        seconds += len(table) * each
        disk = int(len(table) * size) + expression.nbytes  # the binary form as well
        print("\n".join(dry_run_lines(output, facts, seconds, disk)))
        return

    # Results
    manifest = {
        "output": str(output),
        "rows": len(table),
        "genes": len(genes),
        "genes_from": origin,
        "zero_in_all_samples": silent,
        "rows_with_a_slide": paired,
        "rows_per_tissue": notes.get("tissue", pd.Series(dtype=str)).value_counts().to_dict(),
        "rules": RULES,
        "inputs": entries,
        "other_sources": {path: request["sha256"][path] for path in about.values() if path},
    }
    write_expression_table(output, table)
    write_json(manifest_path, manifest)
    write_json(record, request)
    read_expression_table(output)  # so that later stages find it parsed
    log.info(
        "%s: %d samples x %d genes (report: %s)", output, len(table), len(genes), manifest_path
    )
    return None


if __name__ == "__main__":
    run_script(main)
