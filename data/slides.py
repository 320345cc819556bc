"""Slides: opening them, their resolution, reading them at a wanted scale, their grid of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide
from PIL import Image

from data.slide_files import SlideError, open_slide

# A level this close to the wanted resolution, or to a whole multiple of it, is not resampled:
# scanners that say 20x give 0.494 to 0.504 um/px.
SCALE_TOLERANCE = 0.02
# An objective of power 1 would see 10 um/px: Aperio's 20x and 40x scanners give 0.5 and 0.25.
MPP_TIMES_POWER = 10.0
# Outside this range a resolution is a printer's (72 dpi is 353 um/px) or a placeholder.
PLAUSIBLE_MPP = (0.05, 20.0)
UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}
STRIP_PX = 4096
# 25 cm at 8 um/px, square; a damaged header may claim any size.
LARGEST_OVERVIEW_PX = 1_000_000_000


class TileGrid(NamedTuple):
    """Non-overlapping tiles of a slide.

    Attributes:
        level: the slide level to read.
        source_px: side of a tile in that level's pixels.
        tile_px: side of a tile in its own pixels; more than `source_px` where tiles are enlarged.
        mpp: resolution of the tiles, um/px.
        columns: whole tiles side by side.
        rows: whole tiles one above the other.
    """

    level: int
    source_px: int
    tile_px: int
    mpp: float
    columns: int
    rows: int


def slide_mpp(
    properties: Mapping[str, str], mpp_override: float | None = None
) -> tuple[float, str]:
    """Return a slide's level-0 resolution in um/px and the name of the key that it came from.

    Tried in turn: the override, `openslide.mpp-x`, `openslide.objective-power` (10 um/px divided by
    the power), `tiff.XResolution` with its unit. Values outside 0.05 to 20 um/px are passed over.

    Raises:
        SlideError: none of the keys gives a resolution; the message lists what they held.
    """
    if mpp_override is not None:
        return mpp_override, "mpp_override"
    unit = UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""), 0.0)
    tried = []
    for key, numerator in (
        ("openslide.mpp-x", None),
        ("openslide.objective-power", MPP_TIMES_POWER),
        ("tiff.XResolution", unit),
    ):
        text = properties.get(key)
        tried.append(f"{key} {text or 'absent'}")
        try:
            value = float(text or 0)
        except ValueError:
            continue
        mpp = value if numerator is None else numerator / value if value > 0 else 0.0
        if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            return mpp, key
    raise SlideError(
        f"no resolution ({', '.join(tried)}); give it with --mpp_override or --slide_table"
    )


class Slide:
    """A whole-slide image, opened; a context manager.

    Attributes:
        name: file name.
        vendor: the format as OpenSlide names it, or Pillow for a plain image.
        size: width and height of level 0, px.
        mpp: resolution of level 0, um/px.
        mpp_source: the key that `mpp` came from.
        level_mpps: resolution of each level, um/px.
    """

    def __init__(self, path: str | Path, mpp_override: float | None = None) -> None:
        """Open a slide.

        Raises:
            SlideError: not a slide, damaged, or without a resolution.
        """
        self.name = Path(path).name
        self._slide, self.vendor = open_slide(Path(path))
        properties = self._slide.properties
        try:
            self.mpp, self.mpp_source = slide_mpp(properties, mpp_override)
        except SlideError as error:
            self._slide.close()
            raise SlideError(f"{path}: {error}") from None
        self.size = self._slide.dimensions
        self.level_mpps = [self.mpp * factor for factor in self._slide.level_downsamples]
        background = properties.get("openslide.background-color", "FFFFFF")
        self._background = tuple(bytes.fromhex(background))

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self._slide.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region as uint8 RGB (height, width, 3), transparent parts as background.

        Args:
            level: slide level; `x`, `y`, `width` and `height` are in its pixels.

        Raises:
            SlideError: the region is damaged.
        """
        factor = self._slide.level_downsamples[level]
        place = (round(x * factor), round(y * factor))
        try:
            image = self._slide.read_region(place, level, (width, height))
        except (openslide.OpenSlideError, OSError, SyntaxError, ValueError) as error:
            raise SlideError(
                f"{self.name}: damaged at x {place[0]}, y {place[1]} ({error})"
            ) from error
        if image.getchannel("A").getextrema()[0] < 255:
            backdrop = Image.new("RGBA", image.size, (*self._background, 255))
            image = Image.alpha_composite(backdrop, image)
        return np.asarray(image.convert("RGB"))

    def level_for(self, mpp: float, allow_upsampling: bool = False) -> int:
        """Return the coarsest level that need not be enlarged to give `mpp`.

        Raises:
            SlideError: even level 0 is coarser, and `allow_upsampling` is not set.
        """
        fine = [
            level
            for level, level_mpp in enumerate(self.level_mpps)
            if level_mpp <= mpp * (1 + SCALE_TOLERANCE)
        ]
        if fine:
            return max(fine, key=self.level_mpps.__getitem__)
        if allow_upsampling:
            return 0
        raise SlideError(
            f"{self.name}: scanned at {self.mpp:.4g} um/px (by {self.mpp_source}), coarser than the"
            f" {mpp:g} asked for; give --mpp {self.mpp:.4g} or more, or --allow_upsampling"
        )

    def overview(self, mpp: float) -> np.ndarray:
        """Return the whole slide as uint8 RGB at `mpp` or somewhat finer (whole factors only).

        Raises:
            SlideError: damaged, or of an impossible size.
        """
        level = self.level_for(max(mpp, self.mpp))
        width, height = self._slide.level_dimensions[level]
        factor = max(1, int(mpp / self.level_mpps[level] + SCALE_TOLERANCE))
        factor = min(factor, width, height)
        if width * height > LARGEST_OVERVIEW_PX * factor**2:
            raise SlideError(
                f"{self.name}: {self.size[0]} x {self.size[1]} px are too many for a slide of"
                f" {self.mpp:.4g} um/px"
            )
        rows = max(1, STRIP_PX // factor // 4) * factor
        strips = []
        for top in range(0, height // factor * factor, rows):
            strip = self.read(level, 0, top, width, min(rows, height // factor * factor - top))
            strips.append(np.asarray(Image.fromarray(strip).reduce(factor)))
        return np.concatenate(strips)

    def grid(self, tile_px: int, mpp: float, allow_upsampling: bool = False) -> TileGrid:
        """Return the grid of whole tiles of `tile_px` at `mpp`, edge remainders left out.

        Raises:
            SlideError: the slide is coarser than `mpp` (unless `allow_upsampling`), or smaller than
                one tile.
        """
        level = self.level_for(mpp, allow_upsampling)
        factor = mpp / self.level_mpps[level]
        whole = max(1, round(factor))
        if abs(factor / whole - 1) <= SCALE_TOLERANCE:
            factor = whole
        source_px = max(1, round(tile_px * factor))
        width, height = self._slide.level_dimensions[level]
        columns, rows = width // source_px, height // source_px
        if not columns or not rows:
            raise SlideError(
                f"{self.name}: {self.size[0]} x {self.size[1]} px is smaller than one tile"
                f" of {tile_px} px at {mpp:g} um/px"
            )
        tile_mpp = self.level_mpps[level] * source_px / tile_px
        return TileGrid(level, source_px, tile_px, round(tile_mpp, 6), columns, rows)

    def place(self, grid: TileGrid, column: int, row: int) -> tuple[int, int]:
        """Return x and y of a tile of the grid in pixels of level 0."""
        step = grid.source_px * self._slide.level_downsamples[grid.level]
        return round(column * step), round(row * step)

    def read_tiles(self, grid: TileGrid, tiles: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the pixels of tiles, uint8 (tile_px, tile_px, 3), reading neighbours in one strip.

        Args:
            tiles: (N, 2) row and column of each, best sorted: a slide is fastest in raster order.
        """
        for run in _strips(tiles, max(1, STRIP_PX // grid.source_px)):
            row, first = run[0]
            side = grid.source_px
            width = (run[-1][1] - first + 1) * side
            strip = self.read(grid.level, int(first * side), int(row * side), int(width), side)
            for _, column in run:
                left = (column - first) * side
                yield _resample(strip[:, left : left + side], grid.tile_px)


def _strips(tiles: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """Yield runs of tiles of one row that lie next to each other, at most `longest` wide."""
    start = 0
    for end in range(1, len(tiles) + 1):
        if end < len(tiles):
            (row, column), (last_row, last_column) = tiles[end], tiles[end - 1]
            adjacent = row == last_row and column == last_column + 1
            if adjacent and end - start < longest:
                continue
        yield tiles[start:end]
        start = end


def _resample(pixels: np.ndarray, px: int) -> np.ndarray:
    side = pixels.shape[0]
    if side == px:
        return pixels
    image = Image.fromarray(pixels)
    if side % px == 0:
        return np.asarray(image.reduce(side // px))
    # Not BOX, which takes or leaves whole source pixels when the factor is broken.
    method = Image.Resampling.HAMMING if side > px else Image.Resampling.BICUBIC
    return np.asarray(image.resize((px, px), method))
