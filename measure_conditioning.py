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

from data.expression import match_genes, read_cohort
from data.morphology_truth import known_rows, read_factors, read_programs
from data.pixels import images_to_pixels
from data.splits import untrained_rows
from metrics.conditioning import FACTORS, conditioning_cost, measure_conditioning
from models.generated_tiles import profile_images
from report.evaluation import conditioning_lines
from runtime.checkpoint import check_betavae, load_checkpoint
from runtime.config import GANConfig, load_config
from runtime.device import choose_device
from runtime.dry_run import add_dry_run, dry_run_lines
from runtime.errors import UserError, run_script
from runtime.files import require_file, sha256_of, write_json
from runtime.run import already_done, start_log
from runtime.seeds import seed_everything


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
    add_dry_run(parser)
    return parser


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
            path: sha256_of(require_file(path, "input"))
            for path in (args.checkpoint, args.truth, args.programs)
            if path
        },
        "options": [args.seed, args.sample_size, args.mpp],
    }
    if already_done(record, request, [Path(args.output)], args.overwrite):
        return

    # Data: donors that neither the betaVAE nor the RNA-GAN was trained on
    table = read_cohort(config.path_csv)
    betavae = load_checkpoint(vae_path, "betavae")
    truth = read_factors(args.truth, table.names, FACTORS)
    programs = read_programs(args.programs, gan["genes"], FACTORS) if args.programs else {}
    held_out = untrained_rows(table, betavae["split"], gan["train_slides"])
    rows = known_rows(args.truth, truth, held_out)
    expression = match_genes(table, gan["genes"])[0]
    sample = profile_images(gan, betavae, args.seed, device)

    inputs = (
        lambda *given: images_to_pixels(sample(*given)).numpy(),
        expression[rows],
        truth[rows],
        expression[~held_out].mean(axis=0),
        programs,
        args.mpp,
        args.sample_size,
        args.seed,
    )
    if args.dry_run:
        tiles, seconds = conditioning_cost(*inputs)
        facts = {"held-out donors": len(rows), "programs": len(programs), "tiles": tiles}
        print("\n".join(dry_run_lines(args.output, facts, seconds)))
        return

    # Tiles and their morphology, own profile and controls; dose response
    content = measure_conditioning(*inputs)

    # Results
    checkpoint = {"path": args.checkpoint, "sha256": sha256_of(args.checkpoint)}
    write_json(args.output, content | {"seed": args.seed, "checkpoint": checkpoint})
    write_json(record, request)
    print("\n".join(conditioning_lines(content)))


if __name__ == "__main__":
    run_script(main)
