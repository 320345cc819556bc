"""Convert the betaVAE weights published with RNA-GAN into a checkpoint of this suite.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), its trained betaVAE.
Reads:  the published state dict (`--weights`, weights-only: nothing in it is executed) and the
        expression tables of the config, from which the scaler, which was not published, is fitted.
Writes: `--output`, which every script takes as a betaVAE, and its run record beside it.

    python3 convert_betavae.py --weights downloads/model_dict_best.pt \\
        --config configs/published/betavae_tissues.json --output checkpoints/betavae.pt

The profiles that the published network was trained on were drawn by row, without a seed. So the
scaler is fitted on all profiles, and all donors count as training donors: none passes for unseen.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import torch

from data.expression import read_cohort
from models.betavae import BetaVAE
from models.profiles import ExpressionScaler
from runtime.checkpoint import load_weights, save_checkpoint
from runtime.config import BetaVAEConfig, load_config
from runtime.dry_run import add_dry_run, dry_run_lines
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_json
from runtime.run import already_done, start_log, write_run_record

# Published name -> ours. Entry 0 of its encoder is the dropout, the decoder ends in an unseen tanh.
RENAMED = (
    (r"encoder\.encoder\.([1-9])\.", lambda found: f"encoder.{int(found[1]) - 1}."),
    (r"z_(mu|logvar)\.", lambda found: f"{found[1]}."),
    (r"decoder\.2\.0\.", lambda found: "decoder.2."),
)
CHOICES = {"expression_transform": "log_nonzero", "output_activation": "tanh"}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--weights", required=True, help="published state dict, .pt")
    parser.add_argument("--config", required=True, help="JSON config with the published choices")
    parser.add_argument("--output", required=True, help="checkpoint to write")
    parser.add_argument(
        "--seed", type=int, default=99, help="kept in the checkpoint; draws nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another output")
    add_dry_run(parser)
    return parser


def from_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights under the names of `BetaVAE`.

    Source: key layout of the published class, `encoder.encoder.{1,2,3}.{0,1}.*`, `z_mu.*`,
    `z_logvar.*`, `decoder.{0,1}.{0,1}.*`, `decoder.2.0.*`.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in RENAMED:
            name, count = re.subn(f"^{pattern}", ours, name)
            if count:
                break
        renamed[name] = value
    return renamed


def check_weights(weights: dict[str, torch.Tensor], model: BetaVAE, where: str) -> None:
    """Raise a UserError naming the first weight that is not as the config's network has it."""
    expected = model.state_dict()
    for name in [*expected, *weights]:
        if name not in weights or name not in expected:
            which = "lacks" if name not in weights else "has an unknown"
            raise UserError(f"{where}: not the published betaVAE: {which} {name} (our name for it)")
        if weights[name].shape != expected[name].shape:
            found, needed = tuple(weights[name].shape), tuple(expected[name].shape)
            raise UserError(
                f"{where}: {name} is {found}, with the config's rna_features, hidden_dims and"
                f" latent_dim {needed}"
            )


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    began = time.perf_counter()
    args = build_parser().parse_args(argv)
    config = load_config(BetaVAEConfig, args.config)
    for key, published in CHOICES.items():
        if getattr(config, key) != published:
            raise UserError(f"{args.config}: {key} must be {published!r}, as the weights need it")
    weights = from_published(load_weights(args.weights))

    # Run directory, log
    start_log()
    output, record = Path(args.output), Path(f"{args.output}.json")
    tables = {path: sha256_of(path) for path in config.path_csv if Path(path).is_file()}
    settings = config.model_dump()
    request = {"weights": sha256_of(args.weights), "tables": tables, "config": settings}
    if already_done(record, request, [output], args.overwrite):
        return

    # Data
    table = read_cohort(config.path_csv)
    if len(table.genes) != config.rna_features:
        raise UserError(
            f"{args.config}: rna_features is {config.rna_features},"
            f" the tables hold {len(table.genes)} genes"
        )

    # Model
    model_args = config.model_args()
    with torch.device("meta"):
        check_weights(weights, BetaVAE(**model_args), args.weights)

    if args.dry_run:
        size = sum(value.nbytes for value in weights.values())
        facts = {"genes": len(table.genes), "profiles": len(table)}
        print("\n".join(dry_run_lines(output, facts, time.perf_counter() - began, size)))
        return

    # Results
    write_run_record(output.with_suffix(".run.json"), settings, args.seed)
    content = {
        "model_args": model_args,
        "model": weights,
        "genes": table.genes,
        "scaler": ExpressionScaler.fit(
            table.expression, config.expression_transform
        ).to_checkpoint(),
        "split": dict.fromkeys(sorted(set(table.donors)), "train"),
        "config": settings,
        "seed": args.seed,
        "counters": {},
        "best": {},
        "history": [],
    }
    save_checkpoint(output, "betavae", content)
    write_json(record, request)
    print(f"{output}: {len(table.genes)} genes, scaler of {len(table)} profiles")


if __name__ == "__main__":
    run_script(main)
