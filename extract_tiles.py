"""Slides to tile stores: one zip of tissue tiles per slide, with an index.

Reproduces the tiling of RNA-GAN (Cell Reports Methods 2023, 3:100534): non-overlapping tiles of 256
px at 20x (0.5 um/px), those in the published tissue mask, at most 2000 per slide.

Inputs:  a folder of slides: all that OpenSlide opens (.svs, .tif, .ndpi, .mrxs, .scn, .bif, .czi,
         folders of DICOM files, ...), and plain images, whose resolution is to be given.
Outputs: <patch_path>/<slide>.svs/<slide>.zip     tiles named by place, index.csv, store.json
         <patch_path>/overview/<slide>.svs.jpg    the slide, mask outlined, kept tiles framed
         <patch_path>/masks/<slide>.svs.geojson   the mask, for QuPath
         <patch_path>/slides.csv                  slide, status (done, empty, failed), tiles, ...
         <patch_path>/contact_sheet.jpg           all slides on one picture
The same command again continues: finished slides are not repeated. The exit code is 1 when a slide
failed; the others are tiled all the same.

    python3 extract_tiles.py --slide_path GTEX/lung --patch_path images_form/lung_patches
    python3 extract_tiles.py --slide_path demo/cohort/slides/lung --patch_path demo/tiles/lung \\
        --tile_px 64 --mpp 1.0 --max_tiles 300
    python3 extract_tiles.py --check --slide_path GTEX/lung
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openslide
import pandas as pd
import PIL
from tqdm import tqdm

from data.expression import read_cohort
from data.slide_files import SlideError, list_slides, read_slide_table
from data.stain import DEFAULT_REFERENCE, METHODS, read_reference
from data.tile_export import export_images, export_stylegan
from data.tile_sets import store_digest
from data.tiles import (
    SLIDE_SUFFIXES,
    find_tile_stores,
    open_tile_store,
    slide_stem,
)
from data.tiling import TilingSettings, overview_path, tile_slide, with_mask
from data.tiling_plan import PRELOAD, Cost, estimate_cost, plan_all
from data.tiling_status import (
    STATUS_NAME,
    damaged_tiles,
    finished_row,
    read_table,
    write_state,
    write_table,
)
from data.tissue import MASKS
from report.contact_sheet import SlideEntry, write_contact_sheet
from runtime.errors import UserError, run_script
from runtime.files import read_json, require_folder, sha256_of, write_json
from runtime.run import already_done, log, start_log, write_run_record
from runtime.versions import versions
from runtime.workers import Lost, run_in_workers

STATUS_EVERY_S = 5.0
SETTINGS_NAME, SHEET_NAME = "tiling.json", "contact_sheet.jpg"
MPP_TIMES_MAGNIFICATION = 10.0  # Aperio: 20x is 0.5 um/px
DEFAULT = TilingSettings()


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    files = parser.add_argument_group("input and output")
    files.add_argument("--slide_path", help="folder of slides, or one slide")
    files.add_argument("--patch_path", help="folder of the tile stores")
    files.add_argument("--recursive", action="store_true", help="slides in folders below too")
    files.add_argument("--slide_table", help="CSV with columns slide and mpp (um/px of level 0)")
    files.add_argument("--overwrite", action="store_true", help="redo slides tiled otherwise")
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument("--tile_px", type=int, default=DEFAULT.tile_px, help="side of a tile, px")
    scale = tiles.add_mutually_exclusive_group()
    scale.add_argument("--mpp", type=float, default=DEFAULT.mpp, help="um/px of the tiles")
    scale.add_argument("--magnification", type=float, help="the same as --mpp 10/MAGNIFICATION")
    tiles.add_argument("--max_tiles", type=int, default=DEFAULT.max_tiles, help="most of a slide")
    tiles.add_argument("--mpp_override", type=float, help="um/px of level 0, whatever slides say")
    tiles.add_argument(
        "--allow_upsampling", action="store_true", help="enlarge tiles of slides coarser than --mpp"
    )
    tiles.add_argument(
        "--seed", type=int, default=DEFAULT.seed, help="seed of the choice and order of tiles"
    )
    tiles.add_argument("--format", choices=("png", "jpeg"), default="png", help="of the tiles")
    tiles.add_argument("--quality", type=int, default=95, help="of JPEG tiles, 1 to 100")
    tiles.add_argument("--stain", choices=METHODS, default="none", help="stain normalisation")
    tiles.add_argument(
        "--stain_reference",
        help="JSON or image of tissue to normalise to; None: configs/stain_reference.json",
    )  # fmt: skip
    tissue = parser.add_argument_group("tissue")
    tissue.add_argument(
        "--mask", default=DEFAULT.mask,
        help="published, otsu, or a file or folder of files <slide>.png or <slide>.geojson",
    )  # fmt: skip
    tissue.add_argument(
        "--mask_mpp", type=float, default=DEFAULT.mask_mpp, help="um/px of the slide's mask"
    )
    tissue.add_argument(
        "--anchor", choices=("corner", "centre"), default=DEFAULT.anchor,
        help="part of a tile that must lie in the slide's mask; published: corner",
    )  # fmt: skip
    tissue.add_argument(
        "--min_tissue", type=float, default=DEFAULT.min_tissue,
        help="a kept tile has a larger share of tissue",
    )  # fmt: skip
    tissue.add_argument(
        "--tile_rule", choices=("slide", "own"), default=DEFAULT.tile_rule,
        help="whose mask says how much of a tile is tissue: the slide's, or (published) the tile's",
    )  # fmt: skip
    tissue.add_argument("--keep_ink", action="store_true", help="keep green and blue marker ink")
    tissue.add_argument("--reject_folds", action="store_true", help="leave folds out")
    tissue.add_argument(
        "--max_blur", type=float,
        help="leave more blurred tiles out, 0 (sharp) to 1; 0.5: out of focus by about 1 um",
    )  # fmt: skip
    run = parser.add_argument_group("run")
    run.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    run.add_argument(
        "--shard", metavar="I/N", help="every N-th slide from the I-th, for job arrays"
    )
    run.add_argument("--dry_run", action="store_true", help="say what would be done, write nothing")
    run.add_argument("--check", action="store_true", help="the same, with environment and estimate")
    run.add_argument("--verify", action="store_true", help="read every finished tile; redo damage")
    export = parser.add_argument_group("export (without --slide_path: of the stores there are)")
    export.add_argument("--export", choices=("stylegan", "images"), help="write stores as that too")
    export.add_argument("--export_path", help="default: <patch_path>-stylegan.zip or -images")
    export.add_argument("--path_csv", nargs="+", help="expression tables; labels need one")
    export.add_argument("--vae_checkpoint", help="betaVAE whose latents are the labels")
    export.add_argument("--device", help="of the betaVAE")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a UserError naming the first option that is out of range or missing."""
    positive = ("tile_px", "mpp", "magnification", "max_tiles", "mask_mpp", "workers")
    for name in (*positive, "mpp_override"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: a number above 0 is needed")
    if not 0 <= arguments.min_tissue < 1:
        raise UserError(f"--min_tissue {arguments.min_tissue}: 0 to below 1 is needed")
    if arguments.max_blur is not None and not 0 < arguments.max_blur <= 1:
        raise UserError(f"--max_blur {arguments.max_blur}: above 0, at most 1 is needed")
    if not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality {arguments.quality}: 1 to 100 is needed")
    if arguments.mask not in MASKS and not Path(arguments.mask).exists():
        raise UserError(f"--mask {arguments.mask}: {', '.join(MASKS)}, or a file or folder")
    if not arguments.slide_path and not (arguments.export and arguments.patch_path):
        raise UserError("--slide_path: a folder of slides is needed")
    if not arguments.patch_path and not arguments.check:
        raise UserError("--patch_path: a folder for the tile stores is needed")
    if bool(arguments.vae_checkpoint) != bool(arguments.path_csv):
        raise UserError("--vae_checkpoint and --path_csv: labels need both")
    if arguments.vae_checkpoint and arguments.export != "stylegan":
        raise UserError("--vae_checkpoint: only --export stylegan has labels")


def read_settings(arguments: argparse.Namespace) -> TilingSettings:
    """Return the settings that the command line names."""
    shared = {name: getattr(arguments, name, value) for name, value in asdict(DEFAULT).items()}
    if arguments.magnification is not None:
        shared["mpp"] = MPP_TIMES_MAGNIFICATION / arguments.magnification
    shared["jpeg_quality"] = arguments.quality if arguments.format == "jpeg" else None
    shared["stain_reference"] = None
    if arguments.stain != "none":
        reference = read_reference(arguments.stain_reference or DEFAULT_REFERENCE)
        shared["stain_reference"] = reference.model_dump()
    return TilingSettings(**shared)


def shard_of(slides: list[Path], shard: str | None) -> list[Path]:
    """Return every N-th slide from the I-th, of `I/N`; all without a shard.

    Raises:
        UserError: not of that form.
    """
    if shard is None:
        return slides
    first, _, step = shard.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise UserError(f"--shard {shard}: I/N with I from 1 to N is needed, e.g. 3/8")
    return slides[int(first) - 1 :: int(step)]


def settings_of_slides(
    slides: list[Path], settings: TilingSettings, mpp_of_slide: dict[str, float]
) -> dict[Path, TilingSettings | str]:
    """Return the settings of each slide, or why it has none."""
    found: dict[Path, TilingSettings | str] = {}
    for slide in slides:
        mpp = mpp_of_slide.get(slide.name, mpp_of_slide.get(slide_stem(slide.name)))
        own = settings if mpp is None else replace(settings, mpp_override=mpp)
        try:
            found[slide] = with_mask(own, slide.name)
        except SlideError as error:
            found[slide] = str(error)
    return found


def warn_of_unknown_slides(mpp_of_slide: dict[str, float], slides: list[Path]) -> None:
    """Say which rows of the slide table name no slide."""
    names = {name for slide in slides for name in (slide.name, slide_stem(slide.name))}
    if unknown := [name for name in mpp_of_slide if name not in names]:
        log.warning("slide table: %d rows name no slide here (first: %s)", len(unknown), unknown[0])


def check_settings(patch_path: Path, settings: TilingSettings, overwrite: bool) -> None:
    """Raise a UserError when the folder's stores were made with other settings; record these."""
    record = patch_path / SETTINGS_NAME
    if record.is_file() and not overwrite:
        earlier = read_json(record)
        if (key := settings.difference(earlier)) is not None:
            raise UserError(
                f"{record}: tiled with {key} {earlier.get(key, getattr(DEFAULT, key))}, now"
                f" {getattr(settings, key)}; name another --patch_path or add --overwrite"
            )
    write_json(record, asdict(settings))


def print_plan(rows: list[dict[str, Any]]) -> None:
    """Print the plan as a table, one line a slide."""
    if not rows:
        print("no slide in this shard")
        return
    frame = pd.DataFrame(rows).drop(columns="seconds")
    with pd.option_context("display.max_colwidth", None, "display.width", None):
        print(frame.to_string(index=False))
    count = frame["action"].value_counts()
    total = int(frame.loc[frame["action"] == "tile", "tiles"].sum())
    print(
        f"\n{count.get('tile', 0)} slides to tile (at most {total} tiles), {count.get('keep', 0)}"
        f" finished, {count.get('empty', 0)} without tissue, {count.get('fail', 0)} that would fail"
    )


def print_environment() -> None:
    """Print the versions that reading slides depends on."""
    print(
        f"Python {sys.version.split()[0]}, OpenSlide {openslide.__library_version__} (Python"
        f" binding {openslide.__version__}), Pillow {PIL.__version__}, torch {versions()['torch']},"
        f" {os.cpu_count()} CPU cores"
    )
    print(
        f"slides by suffix: {' '.join(SLIDE_SUFFIXES)}; others by content; folders of DICOM files"
    )


def print_cost(cost: Cost, workers: int, patch_path: Path) -> None:
    """Print the time and disk that tiling needs, and the disk that is free."""
    while not patch_path.exists():
        patch_path = patch_path.parent
    free = shutil.disk_usage(patch_path).free
    print(
        f"at most about {cost.minutes:.1f} minutes with {workers} workers and"
        f" {cost.bytes / 1e9:.2f} GB of disk; {free / 1e9:.1f} GB are free"
        f"{'' if free > cost.bytes else ': TOO LITTLE'}"
    )


def export_stores(arguments: argparse.Namespace, patch_path: Path) -> None:
    """Write the stores of the folder in the form asked for."""
    require_folder(patch_path, "folder of tile stores")
    form = arguments.export
    ending = {"stylegan": "-stylegan.zip", "images": "-images"}[form]
    path = Path(arguments.export_path or f"{patch_path}{ending}")
    paths = {store.parent.name: store for store in sorted(patch_path.glob("*/*.zip"))}
    if not paths:
        raise UserError(f"{patch_path}: no tile store in it")
    labels = None
    if arguments.vae_checkpoint:
        labels = latents_of_slides(arguments, patch_path)
        left_out = [name for name, store in paths.items() if store not in labels]
        if left_out:
            log.warning("%d slides without a profile are left out (first: %s)",
                        len(left_out), left_out[0])  # fmt: skip
        labels = {name: labels[store] for name, store in paths.items() if store in labels}
        paths = {name: paths[name] for name in labels}
        if not paths:
            raise UserError(f"{', '.join(arguments.path_csv)}: no row of a slide in {patch_path}")
    stores = {name: open_tile_store(store) for name, store in paths.items()}
    request = {"form": form, "stores": {name: store_digest(s) for name, s in stores.items()}}
    inputs = [*(arguments.path_csv or []), *filter(None, [arguments.vae_checkpoint])]
    request["inputs"] = [sha256_of(given) for given in inputs]
    record = path.with_name(f"{path.name}.json")
    if already_done(record, request, [path]):
        return
    if form == "stylegan":
        count = export_stylegan(path, stores, labels)
    else:
        count = export_images(path, stores)
    write_json(record, request)
    log.info("%s: %d tiles of %d slides", path, count, len(stores))


def latents_of_slides(arguments: argparse.Namespace, patch_path: Path) -> dict[Path, list[float]]:
    """Return the betaVAE latent (mu) of every slide that has a profile and a store, by store."""
    # Tiling alone needs no torch, which takes seconds to import.
    from models.profiles import ProfileEncoder
    from runtime.checkpoint import check_genes, load_checkpoint
    from runtime.device import choose_device

    content = load_checkpoint(arguments.vae_checkpoint, "betavae")
    encoder = ProfileEncoder.from_checkpoint(content, choose_device(arguments.device))
    table = read_cohort(arguments.path_csv)
    check_genes(encoder.genes, table.genes, ", ".join(arguments.path_csv))
    stores = find_tile_stores([patch_path], table.names)
    rows = [row for row, name in enumerate(table.names) if name in stores]
    if not rows:
        return {}
    latents = encoder.mu(table.expression[rows]).tolist()
    return {stores[table.names[row]]: vector for row, vector in zip(rows, latents, strict=True)}


def verify(slides: list[Path], patch_path: Path, workers: int) -> list[str]:
    """Return the slides of whose stores a tile is damaged, having named all such tiles."""
    damaged = []
    tasks = [(slide, patch_path) for slide in slides]
    jobs = run_in_workers(damaged_tiles, tasks, workers, PRELOAD)
    for (slide, _), names in tqdm(jobs, total=len(tasks), unit="slide", desc="verify"):
        if names:
            damaged.append(slide.name)
            count = f"{len(names)} damaged tiles: {' '.join(names)}"
            said = names.reason if isinstance(names, Lost) else count
            tqdm.write(f"{slide.name}: {said}", sys.stderr)
    return damaged


def tile_all(
    slides: dict[Path, TilingSettings | str], patch_path: Path, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield the row of each slide as it is finished, its state file written."""
    unknown = {"status": "failed", "tiles": 0, "seconds": 0.0, "mpp": None}
    tasks = []
    for slide, settings in slides.items():
        if isinstance(settings, str):
            yield {"slide": slide.name, **unknown, "reason": settings}
        else:
            tasks.append((slide, patch_path, settings))
    for (slide, _, settings), row in run_in_workers(tile_slide, tasks, workers, PRELOAD):
        if isinstance(row, Lost):
            row = {"slide": slide.name, **unknown, "reason": row.reason}
        write_state(patch_path, row, slide, settings)
        yield row


def draw_contact_sheet(patch_path: Path, slides: list[Path]) -> None:
    """Draw all slides on one picture, once each has its row: of shards the last one draws."""
    rows = read_table(patch_path)
    if {slide.name for slide in slides} - {row["slide"] for row in rows}:
        return
    entries = [
        SlideEntry(
            row["slide"], row["status"], row["reason"] or f"{row['tiles']} tiles",
            overview_path(patch_path, row["slide"]),
        )
        for row in rows
    ]  # fmt: skip
    write_contact_sheet(patch_path / SHEET_NAME, entries)


def main(argv: list[str] | None = None) -> int:
    """Tile the slides of the command line; return 1 when one of them failed."""
    # Arguments
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    start_log()
    patch_path = Path(arguments.patch_path) if arguments.patch_path else None
    if not arguments.slide_path:
        export_stores(arguments, patch_path)
        return 0
    every = list_slides(arguments.slide_path, arguments.recursive)
    settings = read_settings(arguments)
    mpp_of_slide = read_slide_table(arguments.slide_table) if arguments.slide_table else {}
    warn_of_unknown_slides(mpp_of_slide, every)
    slides = settings_of_slides(shard_of(every, arguments.shard), settings, mpp_of_slide)

    # What is finished already
    finished: dict[str, Any] = {}
    for slide, own in slides.items():
        row = (
            patch_path and isinstance(own, TilingSettings) and finished_row(slide, patch_path, own)
        )
        if row:
            finished[slide.name] = row

    # Only to look
    if arguments.check or arguments.dry_run:
        if arguments.check:
            print_environment()
        planned = plan_all(slides, finished, arguments.workers)
        bar = tqdm(planned, total=len(slides), unit="slide", leave=False)
        rows = {row["slide"]: row for row in bar}
        print_plan([rows[slide.name] for slide in slides])
        cost = estimate_cost(rows, slides, arguments.workers) if arguments.check else None
        if cost:
            print_cost(cost, arguments.workers, (patch_path or Path("x")).resolve())
        if arguments.dry_run:
            print("dry run: nothing written")
        return int(any(row["action"] == "fail" for row in rows.values()))

    # Run directory and log
    check_settings(patch_path, settings, arguments.overwrite)
    part = f".shard-{arguments.shard.replace('/', '-of-')}" if arguments.shard else ""
    write_run_record(patch_path / f"run{part}.json", vars(arguments), arguments.seed)
    if arguments.verify:
        done = [slide for slide in slides if finished.get(slide.name, {}).get("status") == "done"]
        for name in verify(done, patch_path, arguments.workers):
            del finished[name]
    rows = {slide.name: finished.get(slide.name) for slide in slides}
    write_table(patch_path, rows)
    waiting = {slide: own for slide, own in slides.items() if slide.name not in finished}
    if finished:
        log.info("%d of %d slides are finished already", len(finished), len(slides))

    # Loop
    written = time.monotonic()
    pause = STATUS_EVERY_S
    try:
        jobs = tile_all(waiting, patch_path, arguments.workers)
        for row in tqdm(jobs, total=len(waiting), unit="slide", disable=not waiting):
            rows[row["slide"]] = row
            if row["status"] != "done":
                tqdm.write(f"{row['slide']}: {row['status']}: {row['reason']}", file=sys.stderr)
            if time.monotonic() - written > pause:
                started = time.monotonic()
                write_table(patch_path, rows)
                written = time.monotonic()
                pause = max(STATUS_EVERY_S, 20 * (written - started))
    finally:
        write_table(patch_path, rows)

    # Results
    draw_contact_sheet(patch_path, every)
    found = [rows[slide.name] for slide in slides]
    count = {key: sum(row["status"] == key for row in found) for key in ("done", "empty", "failed")}
    total = sum(int(row["tiles"]) for row in found)
    log.info(
        "%s: %d tiles of %d slides; %d empty, %d failed (see %s)",
        patch_path, total, count["done"], count["empty"], count["failed"], patch_path / STATUS_NAME,
    )  # fmt: skip
    if arguments.export:
        export_stores(arguments, patch_path)
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    run_script(main)
