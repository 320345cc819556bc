"""Latent difference between two tissues, or between the two sexes within one tissue.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), shifts of expression between groups.
Reads:  the config's tables and a betaVAE checkpoint; for `--type sex` the sample annotations.
Writes: in `save_dir`: interpolation_<type>.npz (difference of the mean mu, group members) and
        interpolation_<type>.csv (how far every gene moves, most moved first).

    python3 betaVAE_interpolation.py --seed 99 --config configs/betavae_tissues.json \
        --log 0 --parallel 0
    python3 betaVAE_interpolation.py --seed 99 --config configs/demo/betavae_tissues.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data.expression import ExpressionTable, read_cohort
from models.profiles import ProfileEncoder
from runtime.checkpoint import check_genes, load_checkpoint
from runtime.config import BetaVAEConfig, load_config
from runtime.device import choose_device
from runtime.errors import UserError, run_script
from runtime.files import atomic_path, require_file, sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log
from runtime.seeds import seed_everything

SEXES = {"1": "male", "2": "female"}  # GTEx subject phenotypes


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config of the betaVAE")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="betaVAE; default <save_dir>/model_dict_best.pt")
    parser.add_argument("--type", choices=("tissue", "sex"), default="tissue")
    parser.add_argument("--annotations", help="tab-separated, columns SUBJID and SEX (1, 2)")
    parser.add_argument(
        "--log", type=int, choices=(0, 1), default=0, help="accepted; no events here"
    )
    parser.add_argument(
        "--parallel", type=int, choices=(0, 1), default=0, help="accepted; one device"
    )
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    return parser


def groups_of(table: ExpressionTable, kind: str, annotations: str | None) -> np.ndarray:
    """Return each row's group label, "" for rows of neither group.

    tissue: the first two tissues of the config. sex: male and female within the first tissue.

    Raises:
        UserError: a single tissue, or annotations that are missing or lack a column.
    """
    tissue = table.annotations["tissue"].astype(str)
    first_two = tissue.unique()[:2]
    if kind == "tissue":
        return tissue.where(tissue.isin(first_two), "").to_numpy(str)
    path = require_file(annotations or "--annotations", "table of sample annotations")
    frame = pd.read_csv(path, sep="\t", dtype=str)
    if not {"SUBJID", "SEX"} <= set(frame.columns):
        raise UserError(f"{path}: columns SUBJID, SEX needed, found {', '.join(frame.columns)}")
    sex_of = frame.drop_duplicates("SUBJID").set_index("SUBJID").SEX.map(SEXES)
    sex = sex_of.reindex(table.donors).fillna("").to_numpy(str)
    return np.where(tissue == first_two[0], sex, "")


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(BetaVAEConfig, args.config, device=args.device)
    checkpoint_path = Path(args.checkpoint or Path(config.save_dir) / "model_dict_best.pt")

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    stem = Path(config.save_dir) / f"interpolation_{args.type}"
    outputs = [stem.with_suffix(".npz"), stem.with_suffix(".csv")]
    checkpoint = load_checkpoint(checkpoint_path, "betavae")
    inputs = [checkpoint_path, *config.path_csv, *([args.annotations] if args.annotations else [])]
    request = {
        "type": args.type,
        "inputs": {str(path): sha256_of(require_file(path, "input")) for path in inputs},
    }
    if already_done(stem.with_suffix(".json"), request, outputs, args.overwrite):
        return

    # Data
    table = read_cohort(config.path_csv)
    check_genes(checkpoint["genes"], table.genes, ", ".join(config.path_csv))
    labels = groups_of(table, args.type, args.annotations)
    training = np.array([checkpoint["split"].get(donor) == "train" for donor in table.donors])
    names = [name for name in dict.fromkeys(labels.tolist()) if name]
    if len(names) != 2:
        found = ", ".join(names) or "none"
        raise UserError(f"--type {args.type}: two groups are needed, found {found}")
    members = [np.flatnonzero((labels == name) & training) for name in names]
    for name, rows in zip(names, members, strict=True):
        if not len(rows):
            raise UserError(f"--type {args.type}: group {name} has no training donor")

    # Results
    encoder = ProfileEncoder.from_checkpoint(checkpoint, device)
    mu = [encoder.mu(table.expression[rows]) for rows in members]
    means = torch.stack([group.mean(dim=0) for group in mu])  # (2, D)
    decoded = encoder.decode(means)  # (2, G)
    expression = encoder.scaler.inverse(decoded)
    moved = pd.DataFrame({"gene": table.genes, "scaled_shift": decoded[1] - decoded[0]})
    for name, values in zip(names, expression, strict=True):
        moved[f"expression_{name}"] = values
    moved = moved.sort_values("scaled_shift", key=np.abs, ascending=False, kind="stable")
    with atomic_path(outputs[0]) as temporary:
        np.savez(
            temporary,
            difference=(means[1] - means[0]).numpy(),
            groups=np.array(names),
            members_0=np.array([table.names[row] for row in members[0]]),
            members_1=np.array([table.names[row] for row in members[1]]),
        )
    write_csv(outputs[1], moved)
    write_json(stem.with_suffix(".json"), request)
    length = float((means[1] - means[0]).norm())
    log.info("%d %s and %d %s profiles", len(members[0]), names[0], len(members[1]), names[1])
    print(f"{outputs[0]}: {names[0]} to {names[1]}, length {length:.3f}")


if __name__ == "__main__":
    run_script(main)
