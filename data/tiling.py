"""Tiling one slide: what decides it, what would come of it, and doing it."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.mask_files import find_mask, read_mask, write_geojson
from data.slide_files import SlideError
from data.slides import Slide, TileGrid
from data.stain import StainReference, fit_normaliser
from data.tiles import Tile, store_path, write_tile_store
from data.tissue import (
    MASKS,
    Candidates,
    SlideMask,
    candidate_tiles,
    draw_overview,
    kept_tiles,
    slide_mask,
)
from runtime.files import atomic_path, sha256_of
from runtime.seeds import numpy_generator

OVERVIEW_PX = 1024
# Tiles of a slide that its stains are fitted to, and the tissue that each must hold.
STAIN_TILES, STAIN_TISSUE = 24, 0.5


@dataclass(frozen=True)
class TilingSettings:
    """Everything but the slide that its tiles depend on.

    A store made before a setting existed was made with its default; the defaults are the
    publication's (Cell Reports Methods 2023, 3:100534) where it has the setting.
    """

    tile_px: int = 256  # side of a tile, px; published: 256
    mpp: float = 0.5  # um/px of the tiles; published: 20x
    max_tiles: int = 2000  # of a slide; published: 2000
    mpp_override: float | None = None  # um/px of level 0, whatever the slide says
    allow_upsampling: bool = False
    seed: int = 99
    mask_mpp: float = 8.0  # um/px; about what the lowest level of an Aperio slide has
    mask: str = "published"  # or otsu, or a file or folder
    mask_sha256: str | None = None  # of the slide's mask file
    anchor: str = "corner"
    tile_rule: str = "slide"
    min_tissue: float = 0.2  # published: 0.2
    keep_ink: bool = False
    reject_folds: bool = False
    max_blur: float | None = None
    jpeg_quality: int | None = None  # None: PNG
    stain: str = "none"
    stain_reference: dict[str, Any] | None = None

    def difference(self, earlier: dict[str, Any]) -> str | None:
        """Return the name of the first setting in which an earlier record differs, or None."""
        for field in fields(self):
            before, now = earlier.get(field.name, field.default), getattr(self, field.name)
            # Of mask files the content counts, not where they lie.
            files = field.name == "mask" and before not in MASKS and now not in MASKS
            if before != now and not files:
                return field.name
        return None


class SlidePlan(NamedTuple):
    """What tiling a slide would do.

    vendor: its format. mpp, mpp_source: of level 0, and the key it came from. size: of level 0, px.
    grid: its tiles. candidates: tiles that the mask proposes, at most `max_tiles`.
    """

    vendor: str
    mpp: float
    mpp_source: str
    size: tuple[int, int]
    grid: TileGrid
    candidates: int


def source_bytes(path: Path) -> int:
    """Return the size of a slide's file, or of all files of its folder."""
    if path.is_dir():
        return sum(part.stat().st_size for part in path.iterdir() if part.is_file())
    return path.stat().st_size


def with_mask(settings: TilingSettings, slide: str) -> TilingSettings:
    """Return a slide's settings, with the SHA-256 of its mask file where masks are files.

    Raises:
        SlideError: it has no mask file.
    """
    if settings.mask in MASKS:
        return settings
    digest = sha256_of(find_mask(settings.mask, slide))
    return TilingSettings(**{**asdict(settings), "mask_sha256": digest})


def plan_slide(path: Path, settings: TilingSettings) -> SlidePlan:
    """Return what tiling a slide would do; it reads the overview and writes nothing.

    Raises:
        SlideError: it could not be tiled.
    """
    with Slide(path, settings.mpp_override) as slide:
        grid, _, _, candidates = _survey(slide, settings)
        wanted = np.count_nonzero(candidates.tissue_fraction > settings.min_tissue)
        count = wanted if settings.tile_rule == "slide" else len(candidates.tiles)
        return SlidePlan(
            slide.vendor, slide.mpp, slide.mpp_source, slide.size, grid,
            min(count, settings.max_tiles),
        )  # fmt: skip


def tile_slide(path: Path, patch_path: Path, settings: TilingSettings) -> dict[str, Any]:
    """Write store, overview and mask of one slide; return its row of slides.csv.

    The row's status is done, empty (no tissue tile) or failed (the reason says why).

    Raises:
        UserError: a file cannot be written.
    """
    started = time.monotonic()
    row = {"slide": path.name, "status": "failed", "tiles": 0, "mpp": None, "reason": ""}
    store = store_path(patch_path, path.name)
    store.unlink(missing_ok=True)
    for output in (store, _mask_path(patch_path, path.name), overview_path(patch_path, path.name)):
        _remove_leftovers(output)
    try:
        with Slide(path, settings.mpp_override) as slide:
            row["mpp"] = round(slide.mpp, 5)
            row["tiles"] = _write(slide, store, patch_path, settings, source_bytes(path))
        row["status"] = "done" if row["tiles"] else "empty"
        row["reason"] = "" if row["tiles"] else "no tissue tile"
    except SlideError as error:
        row["reason"] = str(error)
    return row | {"seconds": round(time.monotonic() - started, 2)}


def overview_path(patch_path: Path, slide: str) -> Path:
    """Return where the overview of a slide belongs."""
    return patch_path / "overview" / f"{slide}.jpg"


def _mask_path(patch_path: Path, slide: str) -> Path:
    return patch_path / "masks" / f"{slide}.geojson"


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of writing a file (`runtime.files.atomic_path`)."""
    head, tail = f".{path.stem}.", f".part{path.suffix}"
    for leftover in path.parent.glob(f"{glob.escape(head)}*{glob.escape(tail)}"):
        if leftover.name.removeprefix(head).removesuffix(tail).isdigit():
            leftover.unlink(missing_ok=True)


def _survey(
    slide: Slide, settings: TilingSettings
) -> tuple[TileGrid, np.ndarray, SlideMask, Candidates]:
    """Return a slide's grid, its overview, masks of the overview, and the tiles they propose."""
    grid = slide.grid(settings.tile_px, settings.mpp, settings.allow_upsampling)
    overview = slide.overview(settings.mask_mpp)
    if settings.mask in MASKS:
        tissue = MASKS[settings.mask](overview)
    else:
        tissue = read_mask(find_mask(settings.mask, slide.name), slide.size, overview.shape[:2])
    overview_mpp = slide.mpp * slide.size[0] / overview.shape[1]
    fold_mpp = overview_mpp if settings.reject_folds else None
    mask = slide_mask(overview, settings.keep_ink, tissue, fold_mpp)
    return grid, overview, mask, candidate_tiles(slide, grid, mask, settings.anchor)


def _write(
    slide: Slide, store: Path, patch_path: Path, settings: TilingSettings, slide_bytes: int
) -> int:
    """Write a slide's store, overview and mask; return its number of tiles."""
    grid, overview, mask, candidates = _survey(slide, settings)
    tiles = kept_tiles(
        slide, grid, candidates, settings.max_tiles, settings.min_tissue, settings.tile_rule,
        numpy_generator(settings.seed, "choice", slide.name), settings.max_blur,
    )  # fmt: skip
    if settings.stain != "none" and len(candidates.tiles):
        normalise = _stain_normaliser(slide, grid, candidates, settings)
        tiles = (tile._replace(pixels=normalise(tile.pixels)) for tile in tiles)
    info = {
        "settings": asdict(settings),
        "source_bytes": slide_bytes,
        "source_size": list(slide.size),
        "source_mpp": round(slide.mpp, 5),
        "source_mpp_key": slide.mpp_source,
    }
    write_geojson(_mask_path(patch_path, slide.name), mask.tissue, slide.size)

    def draw(places: list[tuple[int, int]]) -> None:
        finer_mpp = slide.mpp * max(slide.size) / OVERVIEW_PX
        finer = finer_mpp < settings.mask_mpp
        shown = slide.overview(finer_mpp) if finer else overview
        picture = draw_overview(slide, grid, shown, mask.tissue, places)
        with atomic_path(overview_path(patch_path, slide.name)) as temporary:
            picture.save(temporary, quality=85)

    # The store comes last: where it is, everything is.
    return write_tile_store(
        store, slide.name, _and_then(tiles, draw), grid.tile_px, grid.mpp, info, settings.seed,
        settings.jpeg_quality,
    )  # fmt: skip


def _stain_normaliser(
    slide: Slide, grid: TileGrid, candidates: Candidates, settings: TilingSettings
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the slide's stain normaliser, fitted to a random sample of its tiles."""
    numbers = np.flatnonzero(candidates.tissue_fraction >= STAIN_TISSUE)
    if not len(numbers):
        numbers = np.arange(len(candidates.tiles))
    generator = numpy_generator(settings.seed, "stain", slide.name)
    chosen = np.sort(generator.permutation(numbers)[:STAIN_TILES])
    sample = np.stack(list(slide.read_tiles(grid, candidates.tiles[chosen])))
    reference = StainReference.model_validate(settings.stain_reference)
    try:
        return fit_normaliser(settings.stain, sample, reference)
    except ValueError as error:
        raise SlideError(f"{slide.name}: stains cannot be fitted ({error})") from error


def _and_then(
    tiles: Iterator[Tile], finish: Callable[[list[tuple[int, int]]], None]
) -> Iterator[Tile]:
    """Yield the tiles, then call `finish` with the places of all."""
    places = []
    for tile in tiles:
        places.append((tile.x, tile.y))
        yield tile
    finish(places)
