"""Other tiling procedures, written from their published steps as plain serial programs.

Each reads a folder of slides at 0.5 um/px (no resampling) and writes PNG tiles of 256 px, at most
so many a slide, one file each, with Pillow's defaults:

published   RNA-GAN (Cell Reports Methods 2023, 3:100534): tissue mask of the lowest level, corners
            in it shuffled, each tile's own mask by scikit-image and its contrast judged.
clam        CLAM (Lu et al. 2021, Nat Biomed Eng 5:555, Methods): saturation of a low level, median
            blur, fixed threshold, closing, regions by area; patches in the regions in raster order,
            white and black ones dropped.
histolab    histolab (Marcolini et al. 2022, SoftwareX 20:101237), GridTiler: largest region of the
            slide's mask; each tile's own tissue mask must cover 80 %.
bare        no tissue detection, no files: raster reads and PNG encoding, by Pillow at its fastest
            level or by the suite's encoder, nothing else.

    python3 -m benchmarks.tiling_peers published SLIDES OUTPUT 2000
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hsv
from skimage.exposure import is_low_contrast
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import remove_small_objects

from data.encoding import encode_png

TILE_PX = 256
Tiles = Iterator[tuple[int, int, Image.Image]]


def published_mask(pixels: np.ndarray) -> np.ndarray:
    """Return the closed mask: saturation above Otsu, not bright in all channels, none below 51."""
    saturation = rgb2hsv(pixels)[..., 1]
    bright = [pixels[..., c] > threshold_otsu(pixels[..., c]) for c in range(3)]
    mask = (saturation > threshold_otsu(saturation)) & ~np.logical_and.reduce(bright)
    mask &= (pixels > 50).all(axis=2)
    return ndimage.binary_erosion(ndimage.binary_dilation(mask, iterations=3), iterations=3)


def grid(slide: openslide.OpenSlide) -> Iterator[tuple[int, int]]:
    """Yield the corners of whole tiles in raster order."""
    width, height = slide.dimensions
    for y in range(0, height - TILE_PX + 1, TILE_PX):
        for x in range(0, width - TILE_PX + 1, TILE_PX):
            yield x, y


def read(slide: openslide.OpenSlide, x: int, y: int) -> Image.Image:
    """Return a tile."""
    return slide.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB")


def low_level(slide: openslide.OpenSlide) -> tuple[np.ndarray, float]:
    """Return the pixels of the lowest level and its downsampling factor."""
    level = slide.level_count - 1
    image = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
    return np.asarray(image), slide.level_downsamples[level]


def inside(mask: np.ndarray, factor: float, x: float, y: float) -> bool:
    """Return whether a point of level 0 lies in a mask of a lower level."""
    row, column = int(y / factor), int(x / factor)
    return bool(mask[min(row, mask.shape[0] - 1), min(column, mask.shape[1] - 1)])


def published(slide: openslide.OpenSlide) -> Tiles:
    """Yield the tiles of the published procedure."""
    pixels, factor = low_level(slide)
    mask = published_mask(pixels)
    places = [place for place in grid(slide) if inside(mask, factor, *place)]
    np.random.default_rng(99).shuffle(places)
    for x, y in places:
        tile = read(slide, x, y)
        values = np.asarray(tile)
        if is_low_contrast(values) or len(np.unique(values)) < 2:
            continue
        if published_mask(values).mean() > 0.2:
            yield x, y, tile


def clam(slide: openslide.OpenSlide) -> Tiles:
    """Yield the tiles of a procedure in the manner of CLAM."""
    pixels, factor = low_level(slide)
    saturation = np.asarray(Image.fromarray(pixels).convert("HSV"))[..., 1]
    mask = ndimage.median_filter(saturation, 7) > 8
    mask = ndimage.binary_closing(mask, np.ones((4, 4)))
    mask = remove_small_objects(mask, max_size=100 * int(TILE_PX / factor) ** 2 // 16)
    mask = ndimage.binary_fill_holes(mask)
    quarter = TILE_PX // 4
    for x, y in grid(slide):
        points = [(x + a, y + b) for a in (quarter, 3 * quarter) for b in (quarter, 3 * quarter)]
        if not any(inside(mask, factor, *point) for point in points):
            continue
        tile = read(slide, x, y)
        if np.asarray(tile.convert("HSV"))[..., 1].mean() < 5:  # white
            continue
        if (np.asarray(tile).mean(axis=(0, 1)) < 40).all():  # black
            continue
        yield x, y, tile


def histolab(slide: openslide.OpenSlide) -> Tiles:
    """Yield the tiles of a procedure in the manner of histolab's GridTiler."""
    pixels, factor = low_level(slide)
    regions = label(_grey_mask(pixels))
    largest = max(regionprops(regions), key=lambda region: region.area)
    top, left, bottom, right = largest.bbox
    for x, y in grid(slide):
        if not (left <= x / factor < right and top <= y / factor < bottom):
            continue
        tile = read(slide, x, y)
        values = np.asarray(tile)
        if rgb2gray(values).std() < 0.03:  # almost white
            continue
        if _grey_mask(values).mean() >= 0.8:
            yield x, y, tile


def _grey_mask(pixels: np.ndarray) -> np.ndarray:
    grey = rgb2gray(pixels)
    mask = grey < threshold_otsu(grey)
    mask = ndimage.binary_dilation(mask, iterations=5)
    return remove_small_objects(ndimage.binary_fill_holes(mask), max_size=50)


PROCEDURES = {"published": published, "clam": clam, "histolab": histolab}


def run(name: str, slides: Path, output: Path, max_tiles: int) -> int:
    """Tile the slides one after the other; return the number of tiles."""
    total = 0
    for path in sorted(slides.glob("*.svs")):
        folder = output / path.name
        folder.mkdir(parents=True, exist_ok=True)
        with openslide.OpenSlide(path) as slide:
            for count, (x, y, tile) in enumerate(PROCEDURES[name](slide), 1):
                tile.save(folder / f"{x}_{y}.png")
                total += 1
                if count == max_tiles:
                    break
    return total


def pillow_png(pixels: np.ndarray) -> bytes:
    """Return a tile as PNG by Pillow at the fastest level that compresses."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


ENCODERS = {"pillow": pillow_png, "own": encode_png}


def bare(path: Path, places: list[tuple[int, int]], encoder: str) -> float:
    """Return the seconds that reading and encoding these tiles in raster order takes."""
    started = time.perf_counter()
    with openslide.OpenSlide(path) as slide:
        for x, y in places:
            ENCODERS[encoder](np.asarray(read(slide, x, y)))
    return time.perf_counter() - started


if __name__ == "__main__":
    procedure, source, target, most = sys.argv[1:]
    print(json.dumps({"tiles": run(procedure, Path(source), Path(target), int(most))}))
