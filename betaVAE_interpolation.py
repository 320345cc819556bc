"""Latent difference between two groups of samples: tissues, sexes, or values of any annotation.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), shifts of expression between groups.
Reads:  the config's tables and a betaVAE checkpoint; with `--type sex` or a column that the tables
        lack, annotations: a table with SUBJID (per donor), or wsi_file_name or SAMPID (per sample).
Writes: in `save_dir`: interpolation_<type>.npz (difference of the mean mu, group members) and
        interpolation_<type>.csv (how far every gene moves, most moved first).

    python3 betaVAE_interpolation.py --seed 99 --config configs/betavae_tissues.json \
        --log 0 --parallel 0
    python3 betaVAE_interpolation.py --seed 99 --config configs/demo/betavae_tissues.json
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data.expression import ExpressionTable, read_cohort
from models.profiles import ProfileEncoder
from runtime.checkpoint import check_genes, load_checkpoint
from runtime.config import BetaVAEConfig, load_config
from runtime.device import choose_device
from runtime.dry_run import add_dry_run, dry_run_lines
from runtime.errors import UserError, run_script
from runtime.files import atomic_path, require_file, sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log
from runtime.seeds import seed_everything

SEXES = {"1": "male", "2": "female"}  # GTEx subject phenotypes
DONOR_KEY = "SUBJID"
SAMPLE_KEYS = ("wsi_file_name", "SAMPID")
LEAST = 2  # members of a group: one profile's latent is no mean


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config of the betaVAE")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="betaVAE; default <save_dir>/model_dict_best.pt")
    groups = parser.add_argument_group("groups")
    groups.add_argument(
        "--type",
        default="tissue",
        help="tissue (default), sex (column SEX, 1 or 2), or a column of the tables or annotations",
    )
    groups.add_argument(
        "--annotations",
        help="table, a row per donor (SUBJID) or per sample (wsi_file_name or SAMPID)",
    )
    groups.add_argument(
        "--groups",
        nargs=2,
        metavar="VALUE",
        help="from, to; default: the first two tissues, or the two values that the column has",
    )
    groups.add_argument(
        "--tissue", help="compare within this tissue; default: the first (not for --type tissue)"
    )
    parser.add_argument(
        "--log", type=int, choices=(0, 1), default=0, help="accepted; no events here"
    )
    parser.add_argument(
        "--parallel", type=int, choices=(0, 1), default=0, help="accepted; one device"
    )
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    add_dry_run(parser)
    return parser


def annotation_of(table: ExpressionTable, column: str, annotations: str | None) -> np.ndarray:
    """Return a column's value for each row of the table as text, "" where there is none.

    Raises:
        UserError: no such file or column, no key column, or no row that belongs to the table.
    """
    if annotations is None and column in table.annotations:
        return table.annotations[column].fillna("").astype(str).to_numpy(str)
    path = require_file(annotations or "--annotations", f"table with a column {column}")
    try:
        separator = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
        frame = pd.read_csv(path, sep=separator, dtype=str)
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    key = next((name for name in (*SAMPLE_KEYS, DONOR_KEY) if name in frame), None)
    if column not in frame or key is None:
        wanted = f"{column} and {DONOR_KEY} (or {' or '.join(SAMPLE_KEYS)})"
        raise UserError(f"{path}: columns {wanted} needed, found {', '.join(frame.columns[:8])}")
    values = frame.dropna(subset=[key]).drop_duplicates(key).set_index(key)[column].str.strip()
    names = table.donors if key == DONOR_KEY else table.names
    if key != DONOR_KEY:  # slides are named with and without .svs
        values.index, names = (
            values.index.str.removesuffix(".svs"),
            [name.removesuffix(".svs") for name in names],
        )
        values = values[~values.index.duplicated()]
    if not values.index.isin(names).any():
        what = "donor" if key == DONOR_KEY else "sample"
        raise UserError(
            f"{path}: no {what} of the expression tables in it ({key} {values.index[0]}, tables"
            f" {names[0]})"
        )
    return values.reindex(names).fillna("").to_numpy(str)


def groups_of(table: ExpressionTable, args: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Return each row's group, "" for rows of neither, and the two groups, from and to.

    tissue: the first two of the config. Any other column: within the first tissue, or `--tissue`.

    Raises:
        UserError: not two groups, or as `annotation_of`.
    """
    tissue = table.annotations["tissue"].astype(str).to_numpy(str)
    tissues = list(dict.fromkeys(tissue.tolist()))
    if args.type == "tissue":
        labels, found = tissue, tissues
        names = args.groups or tissues[:2]
    else:
        column = "SEX" if args.type == "sex" else args.type
        labels = annotation_of(table, column, args.annotations)
        if args.type == "sex":
            labels = np.array([SEXES.get(value, "") for value in labels.tolist()])
        within = args.tissue or tissues[0]
        if within not in tissues:
            raise UserError(f"--tissue {within}: not in the tables (there are: {_some(tissues)})")
        labels = np.where(tissue == within, labels, "")
        found = sorted({name for name in labels.tolist() if name})
        names = args.groups or (list(SEXES.values()) if args.type == "sex" else found)
    if len(names) != 2 or len(set(names)) != 2 or not set(names) <= set(found):
        hint = "; choose two with --groups" if len(found) > 2 else ""
        raise UserError(
            f"--type {args.type}: two groups are needed, found {_some(found) or 'none'}{hint}"
        )
    return np.where(np.isin(labels, names), labels, ""), list(names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def gene_shifts(
    encoder: ProfileEncoder, expression: Sequence[np.ndarray], means: torch.Tensor, names: list[str]
) -> pd.DataFrame:
    """Return how far each gene moves between two groups, most moved first.

    Args:
        encoder: the betaVAE. expression: of the members of each group, (N, G) and (M, G).
        means: latents (2, D) of the groups. names: of the groups.

    Returns:
        `gene`; `scaled_shift`, the decoded difference in standard deviations of the training
        profiles, and `measured_shift`, that of the members themselves; `expression_<name>`,
        decoded; `log2_fold_change` of these, 1 added to both.
    """
    decoded = encoder.decode(means)  # (2, G)
    measured = [encoder.scaler.transform(part).mean(axis=0) for part in expression]
    levels = encoder.scaler.inverse(decoded)
    moved = pd.DataFrame({"gene": encoder.genes, "scaled_shift": decoded[1] - decoded[0]})
    moved["measured_shift"] = measured[1] - measured[0]
    for name, values in zip(names, levels, strict=True):
        moved[f"expression_{name}"] = values
    moved["log2_fold_change"] = np.log2((levels[1] + 1) / (levels[0] + 1))
    return moved.sort_values("scaled_shift", key=np.abs, ascending=False, kind="stable")


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    began = time.perf_counter()
    args = build_parser().parse_args(argv)
    config = load_config(BetaVAEConfig, args.config, device=args.device)
    checkpoint_path = Path(args.checkpoint or Path(config.save_dir) / "model_dict_best.pt")

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    if args.tissue and args.type == "tissue":
        raise UserError("--tissue: for columns other than tissue; name two tissues with --groups")
    parts = [args.type, *([args.tissue] if args.tissue else []), *(args.groups or [])]
    name = re.sub(r"[^\w.-]+", "-", "_".join(parts))
    stem = Path(config.save_dir) / f"interpolation_{name}"
    outputs = [Path(f"{stem}.npz"), Path(f"{stem}.csv")]
    record = Path(f"{stem}.json")
    checkpoint = load_checkpoint(checkpoint_path, "betavae")
    inputs = [checkpoint_path, *config.path_csv, *([args.annotations] if args.annotations else [])]
    request = {
        "type": args.type,
        "groups": args.groups,
        "tissue": args.tissue,
        "inputs": {str(path): sha256_of(require_file(path, "input")) for path in inputs},
    }
    if already_done(record, request, outputs, args.overwrite):
        return

    # Data
    table = read_cohort(config.path_csv)
    check_genes(checkpoint["genes"], table.genes, ", ".join(config.path_csv))
    labels, names = groups_of(table, args)
    training = np.array([checkpoint["split"].get(donor) == "train" for donor in table.donors])
    members = [np.flatnonzero((labels == name) & training) for name in names]
    for name, rows in zip(names, members, strict=True):
        if len(rows) < LEAST:
            raise UserError(
                f"--type {args.type}: group {name} has {len(rows)} training profiles,"
                f" {LEAST} or more are needed"
            )

    # Results
    encoder = ProfileEncoder.from_checkpoint(checkpoint, device)
    mu = [encoder.mu(table.expression[rows]) for rows in members]
    means = torch.stack([group.mean(dim=0) for group in mu])  # (2, D)
    moved = gene_shifts(encoder, [table.expression[rows] for rows in members], means, names)
    if args.dry_run:
        facts = {name: f"{len(rows)} profiles" for name, rows in zip(names, members, strict=True)}
        facts["genes"] = len(moved)
        size = len(moved.to_csv(index=False)) + means.nbytes
        seconds = time.perf_counter() - began
        print("\n".join(dry_run_lines(outputs[0], facts, seconds, size)))
        return
    with atomic_path(outputs[0]) as temporary:
        np.savez(
            temporary,
            difference=(means[1] - means[0]).numpy(),
            groups=np.array(names),
            members_0=np.array([table.names[row] for row in members[0]]),
            members_1=np.array([table.names[row] for row in members[1]]),
        )
    write_csv(outputs[1], moved)
    write_json(record, request)
    length = float((means[1] - means[0]).norm())
    log.info("%d %s and %d %s profiles", len(members[0]), names[0], len(members[1]), names[1])
    print(f"{outputs[0]}: {names[0]} to {names[1]}, length {length:.3f}")


if __name__ == "__main__":
    run_script(main)
