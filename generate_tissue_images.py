"""Generate tiles for a patient of the cohort, for all of them, or for a profile from outside.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534): real, RNA-GAN and GAN tiles of a patient;
    tiles from the profiles of GEO series GSE120795.
Reads:  one or two GAN checkpoints, the betaVAE, the config's tables and tiles, or an external
table.
Writes: in `--save_path`: one folder of numbered PNGs per source (real, rna-gan, gan) with a table
        tiles_<source>.csv beside it that wsi_model.py reads; profiles.csv (every profile and how
        far it lies from the training population); grid.png (8 x 8; with --program and
        --interpolate_to a row per step), sources.png (the sources side by side); request.json;
        with --features patient_features.npz. Tile k depends on --seed, k and the profile alone.
        The same command again continues a stopped run.

    python3 generate_tissue_images.py --checkpoint ./checkpoints/rna-gan_lung.model \\
        --checkpoint2 ./checkpoints/gan_lung.model --config configs/gan_run_lung.json \\
        --sample_size 600 --vae --vae_checkpoint checkpoints/betavae.pt \\
        --patient1 GTEX-15RJ7-0625.svs
    python3 generate_tissue_images.py --checkpoint demo/checkpoints/rna-gan_lung.model \\
        --config configs/demo/gan_run_lung.json --sample_size 64 --vae \\
        --rna_data demo/external/lung.csv --random_patient
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.expression import ExpressionTable, match_genes, read_cohort, read_expression_table
from data.generated_folder import Part, parse_numbers, plan_parts, write_lists, write_pictures
from data.morphology_truth import read_programs
from data.pixels import images_to_pixels, read_image, write_png
from data.tiles import TileDataset, find_tile_stores
from metrics.networks import find_network
from metrics.patient_features import patient_means, save_patient_means, tile_features
from models.edits import move_program, parse_dose, parse_gene_edit, set_genes
from models.networks import load_generator
from models.population import PopulationDistance, population_distance
from models.profiles import ProfileEncoder
from models.sampling import BATCH, encode_alone, prepare_sampling, stream_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import check_betavae, load_checkpoint
from runtime.config import GANConfig, load_config
from runtime.device import PRECISIONS, choose_device, uses_bfloat16
from runtime.dry_run import add_dry_run, dry_run_lines, seconds_per_unit
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv, write_json, write_text
from runtime.run import already_done, log, start_log
from runtime.seeds import numpy_generator, seed_everything

MIN_MATCHED = 0.5  # share of the checkpoint's genes that an external table must hold
WARN_MATCHED = 0.9
FAR = 0.99  # share of the training population nearer than a profile that is warned of
FEATURE_BATCH = 32
PNG_BYTES_PER_PIXEL = 3  # at most; an H&E tile of 256 px takes about 196 kB


class Parser(argparse.ArgumentParser):
    """Reads the range of `--dose -2..2`, which begins like a flag, as its value."""

    def parse_known_args(self, args=None, namespace=None):
        """Return what argparse does, of `--dose=-2..2` in place of the two words."""
        words = list(sys.argv[1:] if args is None else args)
        if "--dose" in words[:-1]:
            place = words.index("--dose")
            words[place : place + 2] = ["=".join(words[place : place + 2])]
        return super().parse_known_args(words, namespace)


class Profiles(NamedTuple):
    """P profiles to generate for.

    Attributes:
        names, tissues: of each.
        steps: place of each in a series (dose, share of the second patient); None: no series.
        mu: latents (P, D) for an RNA-GAN.
        distance: from the training population.
    """

    names: list[str]
    tissues: list[str]
    steps: np.ndarray | None = None
    mu: torch.Tensor | None = None
    distance: PopulationDistance | None = None


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help=".model of an RNA-GAN or GAN")
    parser.add_argument("--checkpoint2", help="another .model, for comparison")
    parser.add_argument("--config", required=True, help="JSON config of the GAN")
    parser.add_argument("--sample_size", type=int, default=600, help="tiles of each source")
    parser.add_argument("--seeds", help="numbers of the tiles instead, e.g. 0-599 or 3,8,20-40")
    parser.add_argument("--seed", type=int, default=99, help="of the noise of all tiles")
    parser.add_argument(
        "--save_path", help="output folder; default generated_images/<model>_<whom>"
    )
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    add_dry_run(parser)
    profile = parser.add_argument_group("whose tiles")
    profile.add_argument("--vae", action="store_true", help="an RNA-GAN takes profiles")
    profile.add_argument("--vae_checkpoint", help="betaVAE; default: the one trained with")
    profile.add_argument("--patient1", help="a slide of the config's tables")
    profile.add_argument("--all_patients", action="store_true", help="all with tiles, in turn")
    profile.add_argument("--num_patients", type=int, help="so many of them only, drawn at random")
    profile.add_argument("--rna_data", "--rna_file", help="table from outside the cohort")
    profile.add_argument("--patient", help="a row of --rna_data")
    profile.add_argument("--random_patient", action="store_true", help="a random row of it")
    edits = parser.add_argument_group("what if: one profile, changed; noise kept")
    edits.add_argument(
        "--set_gene", nargs="+", default=[], metavar="GENE=VALUE", help="+2sd, -1sd or expression"
    )
    edits.add_argument("--program", help="CSV gene_id, program, weight (or gene_id alone) to move")
    edits.add_argument("--program_name", help="which of several programs in it")
    edits.add_argument("--dose", default="-2..2", help="range in sd; default -2..2")
    edits.add_argument("--interpolate_to", metavar="PATIENT", help="walk to another row's latents")
    edits.add_argument("--steps", type=int, default=5, help="of --dose or --interpolate_to")
    features = parser.add_argument_group("mean feature of each patient's tiles")
    features.add_argument("--features", help="network as in fid.py, e.g. inception")
    features.add_argument("--weights", help="its weights file")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a UserError on options that contradict each other."""
    if args.sample_size < 1:
        raise UserError(f"--sample_size {args.sample_size}: 1 or more is needed")
    if bool(args.rna_data) + bool(args.patient1) + args.all_patients != 1:
        raise UserError("one of --patient1, --all_patients and --rna_data says whose tiles")
    if args.num_patients is not None and not (args.all_patients and args.num_patients >= 1):
        raise UserError("--num_patients: 1 or more, with --all_patients")
    if args.program and args.interpolate_to:
        raise UserError("--program or --interpolate_to: one series at a time")
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: 2 or more are needed")


def external_table(path: str, genes: list[str], folder: Path) -> tuple[ExpressionTable, list[str]]:
    """Return an external table over the checkpoint's genes and the missing ones; says how many.

    Raises:
        UserError: fewer than half of the genes are there.
    """
    table = read_expression_table(path)
    expression, missing = match_genes(table, genes)
    matched = 1 - len(missing) / len(genes)
    if matched < MIN_MATCHED:
        raise UserError(
            f"{path}: {matched:.0%} of the checkpoint's {len(genes)} genes found, at least"
            f" {MIN_MATCHED:.0%} needed (first missing: {missing[0]})"
        )
    level = log.warning if round(matched, 2) < WARN_MATCHED else log.info
    sign = "warning: " if round(matched, 2) < WARN_MATCHED else ""
    where = f"; they are listed in {folder / 'missing_genes.txt'}" if missing else ""
    level(
        "%s%s: %d of %d genes found (%.1f %%), %d missing ones counted as 0%s",
        sign, path, len(genes) - len(missing), len(genes), 100 * matched, len(missing), where,
    )  # fmt: skip
    return ExpressionTable(table.names, list(genes), expression, table.annotations), missing


def choose_rows(args: argparse.Namespace, table: ExpressionTable, stores: dict) -> list[int]:
    """Return the table rows to generate for, of an interpolation its two ends."""
    where = args.rna_data or args.config
    ends = [table.row_of(args.interpolate_to, where)] if args.interpolate_to else []
    if args.rna_data and args.random_patient:
        return [int(numpy_generator(args.seed, "patient").integers(len(table))), *ends]
    name = args.patient if args.rna_data else args.patient1
    if name:
        return [table.row_of(name, where), *ends]
    if args.program or args.interpolate_to:
        raise UserError("--program and --interpolate_to start from one profile: name its patient")
    if args.rna_data:
        return list(range(len(table)))
    rows = [row for row, name in enumerate(table.names) if name in stores]
    if args.num_patients is None:
        return rows
    drawn = numpy_generator(args.seed, "patients").permutation(len(rows))[: args.num_patients]
    return [rows[number] for number in sorted(drawn)]


def make_profiles(
    args: argparse.Namespace, gan: dict[str, Any], table: ExpressionTable, device: torch.device
) -> Profiles:
    """Return the profiles of a table's rows for an RNA-GAN, edited; says how far they lie."""
    path = args.vae_checkpoint or gan["conditioning"]["betavae_path"]
    check_betavae(path, gan, gan["path"])
    encoder = ProfileEncoder.from_checkpoint(load_checkpoint(path, "betavae"), device)
    expression = match_genes(table, encoder.genes)[0]
    edits = [parse_gene_edit(text) for text in args.set_gene]
    expression = set_genes(expression, edits, encoder.genes, encoder.scaler)
    names, tissues = table.names, table.annotations["tissue"].astype(str).tolist()
    steps = None
    if args.program:
        programs = read_programs(args.program, encoder.genes, None, encoder.scaler.std)
        if args.program_name is None and len(programs) == 1:
            args.program_name = next(iter(programs))
        if args.program_name not in programs:
            raise UserError(f"{args.program}: --program_name is one of {', '.join(programs)}")
        steps = parse_dose(args.dose, args.steps)
        expression = move_program(expression[0], programs[args.program_name], steps)
        mu = encode_alone(encoder, expression)
    elif args.interpolate_to:
        steps = np.linspace(0, 1, args.steps)
        ends = encode_alone(encoder, expression)
        mu = torch.lerp(*ends, torch.from_numpy(steps).float()[:, None])
    else:
        mu = encode_alone(encoder, expression)
    if steps is not None:
        names, tissues = names[:1] * len(steps), tissues[:1] * len(steps)
    far = population_distance(Conditioning.from_checkpoint(gan["conditioning"]), mu)
    worst = int(far.distance.argmax())
    outside = int((far.nearer > FAR).sum())
    text = (
        f"profiles lie {np.median(far.distance):.2f} times as far from the training population's"
        f" mean as its own do (median of {len(mu)}); the farthest, {names[worst]},"
        f" {far.distance[worst]:.2f} times, farther than {far.nearer[worst]:.1%} of them"
    )
    if outside:
        log.warning("warning: %s; %d of %d beyond %.0f %%", text, outside, len(mu), 100 * FAR)
    else:
        log.info("%s", text)
    return Profiles(names, tissues, steps, mu, far)


def profiles_table(profiles: Profiles) -> pd.DataFrame:
    """Return a row per profile: patient, tissue, step, distance, share of the population nearer."""
    table = pd.DataFrame({"patient": profiles.names, "tissue": profiles.tissues})
    if profiles.steps is not None:
        table["step"] = profiles.steps
    if profiles.distance is not None:
        table["distance"], table["nearer"] = profiles.distance
    return table


def write_tiles(
    generator: torch.nn.Module,
    gan: dict[str, Any],
    profiles: Profiles,
    part: Part,
    seed: int,
) -> Iterator[tuple[int, None]]:
    """Write the missing tiles of a part as PNG; yield once after each."""
    conditioning = profile = None
    if gan["conditioning"] is not None:
        conditioning = Conditioning.from_checkpoint(gan["conditioning"])

        def profile(number: int) -> torch.Tensor:
            return profiles.mu[part.profile_of(number)]

    def write(number: int, image: torch.Tensor) -> None:
        write_png(part.path(number), images_to_pixels(image[None])[0].numpy())

    return stream_images(generator, seed, part.missing(), conditioning, profile, write)


def dry_run(
    parts: Sequence[Part], folder: Path, image_px: int, trial: tuple, seed: int
) -> list[str]:
    """Return what the run would need, from a few tiles of its last part made elsewhere."""

    def some_tiles() -> int:
        with tempfile.TemporaryDirectory() as scratch:
            part = replace(parts[-1], folder=Path(scratch), numbers=[range(4 * BATCH)])
            return sum(1 for _ in write_tiles(*trial, part, seed))

    tiles = sum(map(len, parts))
    profiles = len(trial[2].names)
    facts = {"tiles": tiles, "pixels": f"{image_px} x {image_px}", "profiles": profiles}
    seconds = tiles * seconds_per_unit(some_tiles)
    return dry_run_lines(folder, facts, seconds, tiles * image_px**2 * PNG_BYTES_PER_PIXEL)


def feature_batches(parts: Sequence[Part], owner) -> Iterator[tuple[str, list, torch.Tensor]]:
    """Yield source, (patient, tissue) and pixels (N, H, W, 3) of all tiles, a few at a time."""
    for part in parts:
        numbers = part.tiles()
        while batch := list(itertools.islice(numbers, FEATURE_BATCH)):
            owners = [(patient, label) for label, patient, _ in (owner(part, k) for k in batch)]
            pixels = np.stack([read_image(part.path(number)) for number in batch])
            yield part.source, owners, torch.from_numpy(pixels)


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    check_arguments(args)
    config = load_config(GANConfig, args.config, device=args.device)
    numbers = parse_numbers(args.seeds) if args.seeds else [range(args.sample_size)]
    count = sum(map(len, numbers))
    whom = Path(args.rna_data or args.patient1 or "all").name.split(".")[0]

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    bfloat16 = uses_bfloat16(args.precision, device)
    paths = [path for path in (args.checkpoint, args.checkpoint2) if path]
    gans: dict[str, dict[str, Any]] = {}
    for path in paths:
        gan = load_checkpoint(path, "gan")
        gans["gan" if gan["conditioning"] is None else "rna-gan"] = gan | {"path": path}
    if len(gans) < len(paths):
        raise UserError(f"{args.checkpoint2}: the same kind of model as {args.checkpoint}")
    edited = bool(args.set_gene or args.program or args.interpolate_to)
    if edited and "rna-gan" not in gans:
        raise UserError(f"{args.checkpoint}: a plain GAN has no profile to edit")
    gan = gans.get("rna-gan") or gans["gan"]
    folder = Path(args.save_path or f"generated_images/{Path(args.checkpoint).stem}_{whom}")
    network = find_network(args.features, args.weights) if args.features else None

    # Data
    stores, absent = {}, []
    if args.rna_data:
        table, absent = external_table(args.rna_data, gan["genes"], folder)
    else:
        table = read_cohort(config.path_csv)
        stores = find_tile_stores(config.patch_data_path, table.names)
    rows = choose_rows(args, table, stores)
    if not rows:
        raise UserError(f"{args.config}: no patient with tiles")
    table = table.rows(rows)
    with_tiles = [] if edited else [row for row, name in enumerate(table.names) if name in stores]
    dataset = None
    if with_tiles:
        dataset = TileDataset([stores[table.names[k]] for k in with_tiles], None, gan["image_px"])
    tissues = table.annotations["tissue"].astype(str).tolist()
    profiles = Profiles(table.names, tissues)
    if "rna-gan" in gans:
        profiles = make_profiles(args, gans["rna-gan"], table, device)
    real = min(count, len(dataset)) if dataset else 0
    order = numpy_generator(args.seed, "real").permutation(len(dataset) if dataset else 0)[:real]
    series = profiles.steps is not None
    parts = plan_parts(folder, real, list(gans), numbers, len(profiles.names), series)
    generators = {
        source: prepare_sampling(load_generator(one, device), bfloat16)
        for source, one in gans.items()
    }

    def owner(part: Part, number: int) -> tuple[str, str, int]:
        row = part.profile_of(number)
        if part.source == "real":
            row = with_tiles[dataset.slide_numbers[order[number]]]
        return profiles.tissues[row], profiles.names[row], row

    if args.dry_run:
        last = parts[-1].source
        trial = (generators[last], gans[last], profiles)
        print("\n".join(dry_run(parts, folder, gan["image_px"], trial, args.seed)))
        return

    # What is there already
    request = {
        "tiles": [[part[0], part[-1]] for part in numbers],
        "seed": args.seed,
        "bfloat16": bfloat16,
        "profiles_sha256": hashlib.sha256(table.expression.tobytes()).hexdigest(),
        "program_sha256": sha256_of(args.program) if args.program else None,
        "whom": [args.patient1, args.all_patients, args.rna_data, table.names],
        "edits": [args.set_gene, args.program, args.program_name, args.interpolate_to],
        "steps": profiles.steps.tolist() if series else None,
        "models": {path: sha256_of(path) for path in paths},
        "real_tiles": len(dataset) if dataset else 0,
        "features": network and network.identity(),
    }
    record, features = folder / "request.json", folder / "patient_features.npz"
    results = [record, folder / "sources.png", *([features] if network else [])]
    finished = already_done(record, request, results, args.overwrite)
    if finished and not any(True for part in parts for _ in part.missing()):
        return
    if args.overwrite:
        for part in parts:
            shutil.rmtree(part.folder, ignore_errors=True)
    write_json(record, request)
    if absent:
        write_text(folder / "missing_genes.txt", "\n".join(absent) + "\n")

    # Tiles
    for part in parts:
        if part.source == "real":
            made = (
                write_png(part.path(k), dataset[int(order[k])][0].numpy()) for k in part.missing()
            )
        else:
            one = generators[part.source], gans[part.source]
            made = write_tiles(*one, profiles, part, args.seed)
        for _ in tqdm(made, total=len(part), unit="tile", desc=part.folder.name):
            pass

    # Results
    write_lists(folder, parts, owner, args.seed)
    write_csv(folder / "profiles.csv", profiles_table(profiles))
    if network:
        means = patient_means(
            tqdm(feature_batches(parts, owner), unit="batch", desc="features"),
            tile_features(network, device, bfloat16),
        )
        precision = "bfloat16" if bfloat16 else "float32"
        save_patient_means(features, means, network.identity() | {"precision": precision})
    write_pictures(folder, parts)
    made = {source: sum(len(p) for p in parts if p.source == source) for source in ("real", *gans)}
    print(f"{folder}: {', '.join(f'{n} {source}' for source, n in made.items() if n)} tiles")


if __name__ == "__main__":
    run_script(main)
