"""Measure whether the profile reaches the tile: morphology of generated tiles against the truth.

Reproduces: nothing published; it is the yardstick that the publication's conditioning fails.
Reads:  an RNA-GAN checkpoint, its betaVAE, the config's tables, and the true morphology factors of
    the donors (truth.csv of simulate_cohort.py, or measured on real slides).
Writes: one JSON file: correlation over held-out donors between true and measured factors, with
    shuffled, zero and class-mean profiles as controls; the change of a tile with profile and with
    noise; with --programs, how factors follow the dose of each morphology gene program.

    python3 measure_conditioning.py --checkpoint demo/checkpoints/rna-gan_lung.model \\
        --config configs/demo/gan_run_lung.json --truth demo/cohort/truth.csv --mpp 1.0 \\
        --programs demo/cohort/programs.csv --output demo/conditioning/lung.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.expression import match_genes, read_cohort
from data.pixels import images_to_pixels
from metrics.conditioning import (
    FACTORS,
    conditioning_scores,
    dose_response,
    mean_scores,
    swap_changes,
)
from metrics.morphology import morphology_of_tiles
from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import check_betavae, load_checkpoint
from runtime.config import GANConfig, load_config
from runtime.device import choose_device
from runtime.errors import UserError, run_script
from runtime.files import require_file, sha256_of, write_json
from runtime.run import already_done, start_log
from runtime.seeds import numpy_generator, seed_everything

SWAPPED = 8  # profiles and noises of the swap measurement
DOSES = np.arange(-2.0, 3.0)  # standard deviations of a program's activity
DOSED = 16  # profiles that are moved


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help=".model of an RNA-GAN")
    parser.add_argument("--config", required=True, help="JSON config of the GAN")
    parser.add_argument("--truth", required=True, help="CSV: slide, sample and factor columns")
    parser.add_argument(
        "--programs", help="CSV for the dose response: gene_id, program, weight (log change per sd)"
    )
    parser.add_argument("--mpp", type=float, required=True, help="um per pixel of the tiles")
    parser.add_argument("--output", required=True, help="JSON result")
    parser.add_argument("--vae_checkpoint", help="betaVAE; default: the one trained with")
    parser.add_argument("--sample_size", type=int, default=16, help="tiles per donor")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    return parser


def true_factors(path: str, names: list[str]) -> pd.DataFrame:
    """Return the factor columns of a truth table, a row per name, NaN where it has none."""
    frame = pd.read_csv(require_file(path, "truth table"), keep_default_na=False)
    missing = {"slide", "sample", *FACTORS} - set(frame.columns)
    if missing:
        raise UserError(f"{path}: column {sorted(missing)[0]} is missing")
    frame["name"] = frame.slide.where(frame.slide != "", frame["sample"])
    return frame.set_index("name")[list(FACTORS)].astype(float).reindex(names)


def read_programs(path: str, genes: list[str]) -> dict[str, np.ndarray]:
    """Return the weights (G,) of each program that is named after a factor."""
    frame = pd.read_csv(require_file(path, "gene programs"))
    missing = {"gene_id", "program", "weight"} - set(frame.columns)
    if missing:
        raise UserError(f"{path}: column {sorted(missing)[0]} is missing")
    frame["gene"] = frame.gene_id.str.split(".").str[0]
    order = [gene.split(".")[0] for gene in genes]
    programs = {
        name: part.groupby("gene").weight.sum().reindex(order, fill_value=0.0).to_numpy()
        for name, part in frame[frame.program.isin(FACTORS)].groupby("program")
    }
    if not any(weights.any() for weights in programs.values()):
        raise UserError(f"{path}: no program named {', '.join(FACTORS)} with genes of the model")
    return programs


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(GANConfig, args.config, device=args.device)

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    gan = load_checkpoint(args.checkpoint, "gan")
    if gan["conditioning"] is None:
        raise UserError(f"{args.checkpoint}: a plain GAN has no profile to follow")
    vae_path = args.vae_checkpoint or gan["conditioning"]["betavae_path"]
    check_betavae(vae_path, gan, args.checkpoint)
    record = Path(args.output).with_suffix(".request.txt")
    request = {
        "inputs": {
            path: sha256_of(path) for path in (args.checkpoint, args.truth, args.programs) if path
        },
        "options": [args.seed, args.sample_size, args.mpp],
    }
    if already_done(record, request, [Path(args.output)], args.overwrite):
        return

    # Data: donors that neither the betaVAE nor the RNA-GAN was trained on
    table = read_cohort(config.path_csv)
    encoder = ProfileEncoder.from_checkpoint(load_checkpoint(vae_path, "betavae"), device)
    factors = true_factors(args.truth, table.names)
    held_out = [encoder.split.get(donor) == "test" for donor in table.donors]
    rows = np.flatnonzero(np.array(held_out) & factors.notna().all(axis=1).to_numpy())
    if len(rows) < 4:
        raise UserError(
            f"{args.truth}: {len(rows)} held-out donors with true factors; 4 are needed"
        )
    expression = match_genes(table, gan["genes"])[0]
    mu = encoder.mu(expression)
    programs = read_programs(args.programs, gan["genes"]) if args.programs else {}
    conditioning = Conditioning.from_checkpoint(gan["conditioning"])
    generator = load_generator(gan, device)

    def tiles(profile: torch.Tensor, first: int, count: int) -> np.ndarray:
        indices = range(first, first + count)
        images = [
            image
            for _, image in sample_images(generator, args.seed, indices, conditioning, profile)
        ]
        return images_to_pixels(torch.stack(images)).numpy()

    # Tiles and their morphology, own profile and controls
    shuffled = rows.copy()
    while (shuffled == rows).any():
        shuffled = numpy_generator(args.seed, "shuffle", *shuffled.tolist()).permutation(rows)
    zero = encoder.mu(np.zeros((1, len(gan["genes"])), np.float32))[0]
    given = {
        "r": mu[rows],
        "r_shuffled": mu[shuffled],
        "r_zero": zero.expand(len(rows), -1),
        "r_class_mean": conditioning.mean.expand(len(rows), -1),
    }
    measured = {name: [] for name in given}
    for number in tqdm(range(len(rows)), unit="donor", desc="conditioning"):
        for name, profiles in given.items():
            pixels = tiles(profiles[number], number * args.sample_size, args.sample_size)
            measured[name].append(morphology_of_tiles(pixels, args.mpp))

    # Dose response: the same profiles and noise, one program moved
    spread = factors.to_numpy()[held_out].std(axis=0)
    doses = {}
    for name, weights in tqdm(programs.items(), unit="program", desc="dose response"):
        moved = [
            encoder.mu(expression[rows[:DOSED]] * np.exp(dose * weights, dtype=np.float32))
            for dose in DOSES
        ]
        measures = []
        for profiles in moved:
            parts = [
                tiles(profile, number * args.sample_size, args.sample_size)
                for number, profile in enumerate(profiles)
            ]
            measures.append(morphology_of_tiles(np.concatenate(parts), args.mpp))
        doses[name] = dose_response(np.array(measures), DOSES, spread, FACTORS.index(name))

    # Results
    truth = factors.iloc[rows].to_numpy()  # (donors, factors)
    measured = {name: np.array(values) for name, values in measured.items()}
    scores = conditioning_scores(truth, measured)
    means = mean_scores(truth, measured, numpy_generator(args.seed, "bootstrap"))
    swapped = np.stack([tiles(profile, 0, SWAPPED) for profile in mu[rows[:SWAPPED]]])
    profile_change, noise_change = swap_changes(swapped)
    content = {
        "factors": scores,
        "mean": means,
        "dose_response": doses,
        "profile_change": profile_change,
        "noise_change": noise_change,
        "n_donors": len(rows),
        "tiles_per_donor": args.sample_size,
        "seed": args.seed,
        "checkpoint": {"path": args.checkpoint, "sha256": sha256_of(args.checkpoint)},
    }
    write_json(args.output, content)
    write_json(record, request)
    for factor, values in scores.items():
        print(f"{factor}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    for name, value in means.items():
        if value["r"] is not None:
            print(f"mean {name} {value['r']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
    for name, value in doses.items():
        kind = "monotone" if value["monotone"] else "not monotone"
        own, others = value["slope"][name], value["others"]
        print(f"dose of {name}: {kind}, slope {own}, other factors at most {others}")
    print(f"profile swapped: {profile_change:.2f} of 255; noise swapped: {noise_change:.2f} of 255")


if __name__ == "__main__":
    run_script(main)
