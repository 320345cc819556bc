"""Generate tiles for a patient of the cohort, for all of them, or for a profile from outside.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534): real, RNA-GAN and GAN tiles of a patient;
    tiles from the profiles of GEO series GSE120795.
Reads:  one or two GAN checkpoints, the betaVAE, the config's tables and tiles, or an external
table.
Writes: in `--save_path`: one folder of numbered PNGs per source (real, rna-gan, gan) with a table
        tiles_<source>.csv beside it that wsi_model.py reads, grid.png (8 x 8), sources.png (the
        sources side by side) and request.json. The same command again continues a stopped run.

    python3 generate_tissue_images.py --checkpoint ./checkpoints/rna-gan_lung.model \\
        --checkpoint2 ./checkpoints/gan_lung.model --config configs/gan_run_lung.json \\
        --sample_size 600 --vae --vae_checkpoint checkpoints/betavae.pt \\
        --patient1 GTEX-15RJ7-0625.svs
    python3 generate_tissue_images.py --checkpoint demo/checkpoints/rna-gan_lung.model \\
        --config configs/demo/gan_run_lung.json --sample_size 64 --vae \\
        --rna_data demo/expression/external_lung.csv --random_patient
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.expression import ExpressionTable, match_genes, read_cohort, read_expression_table
from data.pixels import image_grid, images_to_pixels, read_image, write_png
from data.tiles import TileDataset, find_tile_stores
from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import check_betavae, load_checkpoint
from runtime.config import GANConfig, load_config
from runtime.device import choose_device
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log
from runtime.seeds import numpy_generator, seed_everything

MIN_MATCHED = 0.5  # share of the checkpoint's genes that an external table must hold
WARN_MATCHED = 0.9
GRID = 8  # tiles per side of grid.png, as in the publication's figures
SHOWN = 32  # tiles of each source in sources.png
COLUMNS = 4


class Profiles(NamedTuple):
    """Patients to generate for: names, tissue of each, latents mu (N, D) or None for a GAN."""

    names: list[str]
    tissues: list[str]
    mu: torch.Tensor | None


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help=".model of an RNA-GAN or GAN")
    parser.add_argument("--checkpoint2", help="another .model, for comparison")
    parser.add_argument("--config", required=True, help="JSON config of the GAN")
    parser.add_argument("--sample_size", type=int, default=600, help="tiles of each source")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument(
        "--save_path", help="output folder; default generated_images/<model>_<whom>"
    )
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    profile = parser.add_argument_group("whose tiles")
    profile.add_argument("--vae", action="store_true", help="an RNA-GAN takes profiles")
    profile.add_argument("--vae_checkpoint", help="betaVAE; default: the one trained with")
    profile.add_argument("--patient1", help="a slide of the config's tables")
    profile.add_argument("--all_patients", action="store_true", help="all with tiles, in turn")
    profile.add_argument("--rna_data", "--rna_file", help="table from outside the cohort")
    profile.add_argument("--patient", help="a row of --rna_data")
    profile.add_argument("--random_patient", action="store_true", help="a random row of it")
    return parser


def external_table(path: str, genes: list[str]) -> ExpressionTable:
    """Return an external table over the checkpoint's genes; says how many it lacks.

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
    level = log.warning if matched < WARN_MATCHED else log.info
    level("%s: %d of %d genes missing, counted as 0", path, len(missing), len(genes))
    return ExpressionTable(table.names, list(genes), expression, table.annotations)


def choose_rows(args: argparse.Namespace, table: ExpressionTable, stores: dict) -> list[int]:
    """Return the table rows to generate for."""
    if args.rna_data:
        if args.random_patient:
            return [int(numpy_generator(args.seed, "patient").integers(len(table)))]
        if args.patient:
            return [table.row_of(args.patient, args.rna_data)]
        return list(range(len(table)))
    if args.patient1:
        return [table.row_of(args.patient1, args.config)]
    return [row for row, name in enumerate(table.names) if name in stores]


def encode(
    args: argparse.Namespace, gan: dict[str, Any], where: str, table: ExpressionTable, device
) -> torch.Tensor:
    """Return mu (N, D) of a table's rows, and log how far from the training ones they lie."""
    path = args.vae_checkpoint or gan["conditioning"]["betavae_path"]
    check_betavae(path, gan, where)
    mu = ProfileEncoder.from_checkpoint(load_checkpoint(path, "betavae"), device).mu(
        table.expression
    )
    condition = Conditioning.from_checkpoint(gan["conditioning"]).condition(mu)
    distance = condition.square().mean(dim=1).sqrt().median()
    log.info("profiles lie %.1f sd (root mean square) from %s's training mean", distance, where)
    return mu


def generated_tiles(
    gan: dict[str, Any], profiles: Profiles, indices: list[int], seed: int, device: torch.device
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, tile (H, W, 3)) of a model; tile k is of profile k modulo their number."""
    conditioning = mu = None
    if gan["conditioning"] is not None:
        conditioning = Conditioning.from_checkpoint(gan["conditioning"])
        mu = profiles.mu[[index % len(profiles.names) for index in indices]]
    generator = load_generator(gan, device)
    for index, image in sample_images(generator, seed, indices, conditioning, mu):
        yield index, images_to_pixels(image[None])[0].numpy()


def real_tiles(dataset: TileDataset, order: np.ndarray, indices: list[int]) -> Iterator:
    """Yield (index, tile (H, W, 3)) of real tiles in a shuffled order."""
    for index in indices:
        yield index, dataset[int(order[index])][0].numpy()


def write_pictures(folder: Path, sources: dict[str, list[Path]]) -> None:
    """Write grid.png of the first model's tiles and sources.png of all sources side by side."""
    first = next(name for name in sources if name != "real")
    tiles = np.stack([read_image(path) for path in sources[first][: GRID**2]])
    write_png(folder / "grid.png", image_grid(tiles, min(GRID, len(tiles))))
    order = [name for name in ("real", "rna-gan", "gan") if name in sources]
    shown = min(SHOWN, *(len(sources[name]) for name in order))
    blocks = []
    for name in order:
        tiles = np.stack([read_image(path) for path in sources[name][:shown]])
        block = image_grid(tiles, COLUMNS)
        blocks += [block, np.full((len(block), 16, 3), 255, np.uint8)]
    write_png(folder / "sources.png", np.concatenate(blocks[:-1], axis=1))


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(GANConfig, args.config, device=args.device)
    if args.sample_size < 1:
        raise UserError(f"--sample_size {args.sample_size}: 1 or more is needed")
    if bool(args.rna_data) + bool(args.patient1) + args.all_patients != 1:
        raise UserError("one of --patient1, --all_patients and --rna_data says whose tiles")
    whom = Path(args.rna_data or args.patient1 or "all").name.split(".")[0]

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    paths = [path for path in (args.checkpoint, args.checkpoint2) if path]
    gans = {}
    for path in paths:
        gan = load_checkpoint(path, "gan")
        gans["gan" if gan["conditioning"] is None else "rna-gan"] = gan | {"path": path}
    if len(gans) < len(paths):
        raise UserError(f"{args.checkpoint2}: the same kind of model as {args.checkpoint}")
    gan = next(iter(gans.values()))
    folder = Path(args.save_path or f"generated_images/{Path(args.checkpoint).stem}_{whom}")

    # Data
    stores = {}
    if args.rna_data:
        table = external_table(args.rna_data, gan["genes"])
    else:
        table = read_cohort(config.path_csv)
        stores = find_tile_stores(config.patch_data_path, table.names)
    rows = choose_rows(args, table, stores)
    if not rows:
        raise UserError(f"{args.config}: no patient with tiles")
    table = table.rows(rows)
    dataset = None
    if any(name in stores for name in table.names):
        found = [stores[name] for name in table.names if name in stores]
        dataset = TileDataset(found, None, gan["image_px"])
    counts = dict.fromkeys(gans, args.sample_size)
    if dataset:
        counts = {"real": min(args.sample_size, len(dataset))} | counts
    files = {
        source: [folder / source / f"{number:06d}.png" for number in range(count)]
        for source, count in counts.items()
    }
    request = {
        "sample_size": args.sample_size,
        "seed": args.seed,
        "whom": [args.patient1, args.all_patients, args.rna_data, table.names],
        "models": {path: sha256_of(path) for path in paths},
        "real_tiles": len(dataset) if dataset else 0,
    }
    record = folder / "request.json"
    outputs = [path for source in files.values() for path in source] + [folder / "sources.png"]
    if already_done(record, request, outputs, args.overwrite):
        return
    write_json(record, request)

    # Tiles
    mu = None
    if "rna-gan" in gans:
        matched, _ = match_genes(table, gans["rna-gan"]["genes"])
        table = ExpressionTable(table.names, gans["rna-gan"]["genes"], matched, table.annotations)
        mu = encode(args, gans["rna-gan"], gans["rna-gan"]["path"], table, device)
    profiles = Profiles(table.names, table.annotations["tissue"].astype(str).tolist(), mu)
    order = numpy_generator(args.seed, "real").permutation(len(dataset) if dataset else 0)
    for source, expected in files.items():
        todo = [
            number for number, path in enumerate(expected) if args.overwrite or not path.exists()
        ]
        if source == "real":
            tiles = real_tiles(dataset, order, todo)
        else:
            tiles = generated_tiles(gans[source], profiles, todo, args.seed, device)
        for number, pixels in tqdm(tiles, total=len(todo), unit="tile", desc=source):
            write_png(expected[number], pixels)

    # Results
    for source, expected in files.items():
        place = np.arange(len(expected)) % len(profiles.names)
        if source == "real":
            with_tiles = [row for row, name in enumerate(table.names) if name in stores]
            place = np.array(with_tiles)[dataset.slide_numbers[order[: len(expected)]]]
        tiles = pd.DataFrame(
            {
                "wsi_file_names": [f"{folder.name}/{source}/{path.name}" for path in expected],
                "Labels": [profiles.tissues[row] for row in place],
                "patient": [profiles.names[row] for row in place],
                "source": source,
                "seed": args.seed,
            }
        )
        write_csv(folder / f"tiles_{source}.csv", tiles)
    write_pictures(folder, files)
    print(
        f"{folder}: {', '.join(f'{len(paths)} {source}' for source, paths in files.items())} tiles"
    )


if __name__ == "__main__":
    run_script(main)
