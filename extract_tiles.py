"""Slides to tile stores: one zip of tissue tiles per slide, with an index.

Reproduces the tiling of RNA-GAN (Cell Reports Methods 2023, 3:100534): non-overlapping tiles of 256
px at 20x (0.5 um/px), those in the published tissue mask, at most 2000 per slide.

Inputs:  a folder of slides that OpenSlide opens (.svs, .tif, .ndpi, .mrxs, ...).
Outputs: <patch_path>/<slide>.svs/<slide>.zip   PNG tiles named by place, index.csv, store.json
         <patch_path>/overview/<slide>.svs.jpg  the slide, mask outlined, kept tiles framed
         <patch_path>/slides.csv                slide, status (done, empty, failed), tiles, ...
The same command again continues: finished slides are not repeated. The exit code is 1 when a slide
failed; the others are tiled all the same.

    python3 extract_tiles.py --slide_path GTEX/lung --patch_path images_form/lung_patches
    python3 extract_tiles.py --slide_path demo/cohort/slides/lung --patch_path demo/tiles/lung \\
        --tile_px 64 --mpp 1.0 --max_tiles 300
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from data.slides import Slide, SlideError
from data.tiles import SLIDE_SUFFIXES, Tile, open_tile_store, store_path, write_tile_store
from data.tissue import candidate_tiles, draw_overview, kept_tiles, slide_mask
from runtime.errors import UserError, run_script
from runtime.files import atomic_path, read_json, require_folder, write_json
from runtime.run import log, start_log, write_run_record
from runtime.seeds import numpy_generator

# Published: 256 px at 20x, at most 2000 tiles, more than 20 % of a tile in its own mask.
TILE_PX = 256
MPP = 0.5
MAX_TILES = 2000
MIN_TISSUE = 0.2
# About what the lowest level of an Aperio slide has.
MASK_MPP = 8.0
OVERVIEW_PX = 1024
STATUS_COLUMNS = ["slide", "status", "tiles", "seconds", "mpp", "reason"]
STATUS_EVERY_S = 5.0
SETTINGS_NAME = "tiling.json"
STATUS_NAME = "slides.csv"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    files = parser.add_argument_group("input and output")
    files.add_argument("--slide_path", required=True, help="folder of slides, or one slide")
    files.add_argument("--patch_path", required=True, help="folder of the tile stores")
    files.add_argument("--overwrite", action="store_true", help="redo slides tiled otherwise")
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument("--tile_px", type=int, default=TILE_PX, help="side of a tile, px")
    tiles.add_argument("--mpp", type=float, default=MPP, help="resolution of the tiles, um/px")
    tiles.add_argument("--max_tiles", type=int, default=MAX_TILES, help="most tiles of a slide")
    tiles.add_argument("--mpp_override", type=float, help="um/px of level 0, whatever slides say")
    tiles.add_argument("--seed", type=int, default=99, help="seed of the choice and order of tiles")
    tissue = parser.add_argument_group("tissue")
    tissue.add_argument(
        "--mask_mpp", type=float, default=MASK_MPP, help="um/px of the slide's mask"
    )
    tissue.add_argument(
        "--anchor", choices=("corner", "centre"), default="corner",
        help="part of a tile that must lie in the slide's mask; published: corner",
    )  # fmt: skip
    tissue.add_argument(
        "--min_tissue", type=float, default=MIN_TISSUE,
        help="a kept tile has a larger share of tissue",
    )  # fmt: skip
    tissue.add_argument(
        "--tile_rule", choices=("slide", "own"), default="slide",
        help="whose mask says how much of a tile is tissue: the slide's, or (published) the tile's",
    )  # fmt: skip
    tissue.add_argument("--keep_ink", action="store_true", help="keep green and blue marker ink")
    run = parser.add_argument_group("run")
    run.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a UserError naming the first option that is out of range."""
    for name in ("tile_px", "mpp", "max_tiles", "mask_mpp", "workers", "mpp_override"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value}: a number above 0 is needed")
    if not 0 <= arguments.min_tissue < 1:
        raise UserError(f"--min_tissue {arguments.min_tissue}: 0 to below 1 is needed")


def list_slides(slide_path: str) -> list[Path]:
    """Return the slides of a folder by name, or the one slide given."""
    path = Path(slide_path)
    if path.is_file():
        return [path]
    require_folder(path, "slide folder")
    slides = [
        entry
        for entry in sorted(path.iterdir())
        if entry.suffix.lower() in SLIDE_SUFFIXES and not entry.is_dir()
    ]
    if not slides:
        raise UserError(f"{path}: no slides in it (looked for {' '.join(SLIDE_SUFFIXES)})")
    return slides


def check_settings(patch_path: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Raise a UserError when the folder's stores were made with other settings; record these."""
    record = patch_path / SETTINGS_NAME
    if record.is_file() and not overwrite:
        earlier = read_json(record)
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise UserError(
                    f"{record}: tiled with {key} {earlier.get(key)}, now {value};"
                    " name another --patch_path or add --overwrite"
                )
    write_json(record, settings)


def finished_row(
    slide: Path, patch_path: Path, settings: dict[str, Any], earlier: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return the row of a slide that an earlier run finished, or None when it has to be tiled.

    Args:
        earlier: the slide's row in slides.csv, made with the same settings.
    """
    if earlier and earlier["status"] == "empty":
        return earlier
    try:
        store = open_tile_store(store_path(patch_path, slide.name))
        info = store.info
    except UserError:
        return None
    if info.get("settings") != settings or info["source_bytes"] != slide.stat().st_size:
        return None
    known = {"slide": slide.name, "status": "done", "tiles": len(store), "reason": ""}
    return {"seconds": "", **(earlier or {}), **known, "mpp": info["source_mpp"]}


def read_status(path: Path) -> dict[str, dict[str, Any] | None]:
    """Return the rows of slides.csv by slide; none where there is no such file."""
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != STATUS_COLUMNS:
        raise UserError(f"{path}: not a status table ({', '.join(STATUS_COLUMNS)}); remove it")
    return {row["slide"]: row for row in frame.to_dict("records")}


def write_status(path: Path, rows: dict[str, dict[str, Any] | None]) -> None:
    """Write slides.csv: the slides that have a row, by name."""
    known = [row for _, row in sorted(rows.items()) if row is not None]
    with atomic_path(path) as temporary:
        pd.DataFrame(known, columns=STATUS_COLUMNS).to_csv(temporary, index=False)


def tile_slide(slide_path: Path, patch_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the tile store and the overview of one slide and return its row of slides.csv."""
    started = time.monotonic()
    row = {"slide": slide_path.name, "status": "failed", "tiles": 0, "mpp": None, "reason": ""}
    path = store_path(patch_path, slide_path.name)
    for leftover in (path, *path.parent.glob(f".{path.stem}.*.part.zip")):
        leftover.unlink(missing_ok=True)
    try:
        with Slide(slide_path, settings["mpp_override"]) as slide:
            row["mpp"] = round(slide.mpp, 5)
            grid = slide.grid(settings["tile_px"], settings["mpp"])
            overview = slide.overview(settings["mask_mpp"])
            mask = slide_mask(overview, settings["keep_ink"])
            generator = numpy_generator(settings["seed"], "choice", slide.name)
            tiles = kept_tiles(
                slide, grid, candidate_tiles(slide, grid, mask, settings["anchor"]),
                settings["max_tiles"], settings["min_tissue"], settings["tile_rule"], generator,
            )  # fmt: skip
            places: list[tuple[int, int]] = []
            info = {
                "settings": settings,
                "source_bytes": slide_path.stat().st_size,
                "source_size": list(slide.size),
                "source_mpp": row["mpp"],
                "source_mpp_key": slide.mpp_source,
            }
            row["tiles"] = write_tile_store(
                path, slide.name, noting(tiles, places), grid.tile_px, grid.mpp, info,
                settings["seed"],
            )  # fmt: skip
            finer_mpp = slide.mpp * max(slide.size) / OVERVIEW_PX
            if finer_mpp < settings["mask_mpp"]:
                overview = slide.overview(finer_mpp)
            picture = draw_overview(slide, grid, overview, mask.tissue, places)
            with atomic_path(patch_path / "overview" / f"{slide.name}.jpg") as temporary:
                picture.save(temporary, quality=85)
        row["status"] = "done" if row["tiles"] else "empty"
        row["reason"] = "" if row["tiles"] else "no tissue tile"
    except SlideError as error:
        row["reason"] = str(error)
    return row | {"seconds": round(time.monotonic() - started, 2)}


def noting(tiles: Iterator[Tile], places: list[tuple[int, int]]) -> Iterator[Tile]:
    """Yield the tiles and append their places."""
    for tile in tiles:
        places.append((tile.x, tile.y))
        yield tile


def run_jobs(
    slides: list[Path], patch_path: Path, settings: dict[str, Any], workers: int
) -> Iterator[dict[str, Any]]:
    """Yield the row of each slide as it is finished."""
    workers = min(workers, len(slides))
    if workers <= 1:
        for slide in slides:
            yield tile_slide(slide, patch_path, settings)
        return
    # Not fork: the libraries have threads by now, which do not survive it.
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(tile_slide, slide, patch_path, settings) for slide in slides]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command with"
                " fewer --workers continues"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def main(argv: list[str] | None = None) -> int:
    """Tile the slides of the command line; return 1 when one of them failed."""
    # Arguments
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    slides = list_slides(arguments.slide_path)
    settings = {
        name: getattr(arguments, name)
        for name in (
            "tile_px", "mpp", "max_tiles", "mpp_override", "seed", "mask_mpp", "anchor",
            "tile_rule", "min_tissue", "keep_ink",
        )
    }  # fmt: skip

    # Run directory and log
    start_log()
    patch_path = Path(arguments.patch_path)
    check_settings(patch_path, settings, arguments.overwrite)
    write_run_record(patch_path / "run.json", vars(arguments), arguments.seed)

    # What is finished already
    status_path = patch_path / STATUS_NAME
    rows = {} if arguments.overwrite else read_status(status_path)
    for slide in slides:
        rows[slide.name] = finished_row(slide, patch_path, settings, rows.get(slide.name))
    write_status(status_path, rows)
    waiting = [slide for slide in slides if rows[slide.name] is None]
    if len(waiting) < len(slides):
        log.info("%d of %d slides are finished already", len(slides) - len(waiting), len(slides))

    # Loop
    written = time.monotonic()
    try:
        jobs = run_jobs(waiting, patch_path, settings, arguments.workers)
        for row in tqdm(jobs, total=len(waiting), unit="slide", disable=not waiting):
            rows[row["slide"]] = row
            if row["status"] != "done":
                tqdm.write(f"{row['slide']}: {row['status']}: {row['reason']}", file=sys.stderr)
            if time.monotonic() - written > STATUS_EVERY_S:
                write_status(status_path, rows)
                written = time.monotonic()
    finally:
        write_status(status_path, rows)

    # Results
    found = [rows[slide.name] for slide in slides]
    count = {key: sum(row["status"] == key for row in found) for key in ("done", "empty", "failed")}
    total = sum(int(row["tiles"]) for row in found)
    log.info(
        "%s: %d tiles of %d slides; %d empty, %d failed (see %s)",
        patch_path, total, count["done"], count["empty"], count["failed"], status_path,
    )  # fmt: skip
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    run_script(main)
