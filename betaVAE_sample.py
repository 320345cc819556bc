"""Synthetic expression from a trained betaVAE: drawn from the prior, or real profiles shifted.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), synthetic and shifted expression.
Reads:  a betaVAE checkpoint; with `--interpolation` also the config's tables.
Writes: in `save_dir`: samples.csv, or samples_<a>_to_<b>.csv and samples_<b>_to_<a>.csv: tables
        in the form of the input, so that they can be fed to any stage.

    python3 betaVAE_sample.py --seed 99 --config configs/betavae_tissues.json --log 0 --parallel 0
    python3 betaVAE_sample.py --seed 99 --config configs/demo/betavae_tissues.json --num_samples 200
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data.expression import ExpressionTable, read_cohort, write_expression_table
from models.profiles import ProfileEncoder
from runtime.checkpoint import check_genes, load_checkpoint
from runtime.config import BetaVAEConfig, load_config
from runtime.device import choose_device
from runtime.errors import UserError, run_script
from runtime.files import require_file, sha256_of, write_json
from runtime.run import already_done, start_log
from runtime.seeds import numpy_generator, seed_everything, torch_generator


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config of the betaVAE")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="betaVAE; default <save_dir>/model_dict_best.pt")
    parser.add_argument("--num_samples", type=int, default=600, help="profiles per table")
    parser.add_argument("--interpolation", help="interpolation_<type>.npz: shift real profiles")
    parser.add_argument("--alpha", type=float, default=1.0, help="shift in units of the difference")
    parser.add_argument(
        "--log", type=int, choices=(0, 1), default=0, help="accepted; no events here"
    )
    parser.add_argument(
        "--parallel", type=int, choices=(0, 1), default=0, help="accepted; one device"
    )
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    return parser


def read_interpolation(path: str, latent_dim: int) -> dict[str, np.ndarray]:
    """Return the arrays of an interpolation file, checked against the latent dimension."""
    try:
        with np.load(require_file(path, "interpolation"), allow_pickle=False) as archive:
            content = {
                key: archive[key] for key in ("difference", "groups", "members_0", "members_1")
            }
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a result of betaVAE_interpolation.py ({error})") from error
    if content["difference"].shape != (latent_dim,):
        raise UserError(
            f"{path}: {content['difference'].size} latent dimensions, the betaVAE has {latent_dim}"
        )
    return content


def shifted_latents(mu: torch.Tensor, shift: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """Return z + shift (count, D) for profiles drawn from mu (N, D), all used equally often."""
    order = numpy_generator(seed, "shift").permutation(len(mu))
    return mu[np.resize(order, count)] + torch.from_numpy(shift)


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(BetaVAEConfig, args.config, device=args.device)
    checkpoint_path = Path(args.checkpoint or Path(config.save_dir) / "model_dict_best.pt")
    if args.num_samples < 1:
        raise UserError(f"--num_samples {args.num_samples}: 1 or more is needed")

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    checkpoint = load_checkpoint(checkpoint_path, "betavae")
    encoder = ProfileEncoder.from_checkpoint(checkpoint, device)
    latent_dim = encoder.model.latent_dim
    folder = Path(config.save_dir)
    inputs = [checkpoint_path]
    names = ["samples"]
    if args.interpolation:
        shift = read_interpolation(args.interpolation, latent_dim)
        one, other = shift["groups"].tolist()
        names = [f"samples_{one}_to_{other}", f"samples_{other}_to_{one}"]
        inputs += [args.interpolation, *config.path_csv]
    outputs = [folder / f"{name}.csv" for name in names]
    record = folder / f"{names[0]}.json"
    request = {
        "seed": args.seed,
        "num_samples": args.num_samples,
        "alpha": args.alpha if args.interpolation else None,
        "inputs": {str(path): sha256_of(require_file(path, "input")) for path in inputs},
    }
    if already_done(record, request, outputs, args.overwrite):
        return

    # Data
    if args.interpolation:
        table = read_cohort(config.path_csv)
        check_genes(checkpoint["genes"], table.genes, ", ".join(config.path_csv))
        latents = []
        for sign, members in ((1, shift["members_0"]), (-1, shift["members_1"])):
            rows = [table.row_of(name, args.interpolation) for name in members.tolist()]
            move = np.float32(sign * args.alpha) * shift["difference"]
            mu = encoder.mu(table.expression[rows])
            latents.append(shifted_latents(mu, move, args.num_samples, args.seed))
    else:
        draw = torch_generator(args.seed, "prior")
        latents = [torch.randn(args.num_samples, latent_dim, generator=draw)]

    # Results
    for path, name, z in zip(outputs, names, latents, strict=True):
        decoded = encoder.decode(z)
        kind = name.removeprefix("samples_") if args.interpolation else "synthetic"
        write_expression_table(
            path,
            ExpressionTable(
                [f"SYNTHETIC-{number:06d}" for number in range(args.num_samples)],
                checkpoint["genes"],
                encoder.scaler.inverse(decoded),
                pd.DataFrame({"tissue": [kind] * args.num_samples}),
            ),
        )
        print(f"{path}: {args.num_samples} profiles of {len(checkpoint['genes'])} genes")
    write_json(record, request)


if __name__ == "__main__":
    run_script(main)
