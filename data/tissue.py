"""Where the tissue is: masks of slides and tiles, and which tiles of a slide are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data.artefacts import blur_of, fold_mask, ink_mask
from data.slides import Slide, TileGrid
from data.tiles import Tile

CLOSING_ITERATIONS = 3
DARKEST = 50
# Luminance of the low-contrast rule: scikit-image's rgb2gray (its is_low_contrast uses it).
LUMINANCE = (0.2125, 0.7154, 0.0721, 0.0)
CONTRAST_PERCENTILES = (1.0, 99.0)
SAMPLED_PX = 64 * 64
SMALLEST_CONTRAST = 0.05
# Share of a tile that ink and folds may cover.
LARGEST_ARTEFACT = 0.05
OUTLINE_COLOUR = (0, 140, 60)
FRAME_COLOUR = (20, 60, 220)


def otsu_threshold(histogram: np.ndarray) -> int:
    """Return the level that divides a histogram into two classes of greatest variance between them.

    Args:
        histogram: counts of the levels 0 .. n-1.

    Returns:
        the last level of the lower class; of a histogram with one level that level.

    Source: Otsu 1979, equation 18.
    """
    counts = np.asarray(histogram, np.float64)
    lower = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(len(counts)))
    weights = lower * (lower[-1] - lower)
    gap = moment[-1] * lower - moment * lower[-1]
    between = np.divide(gap**2, weights, out=np.zeros_like(gap), where=weights > 0)
    return int(np.argmax(between)) if between.any() else int(np.argmax(counts))


def tissue_mask(pixels: np.ndarray) -> np.ndarray:
    """Return the published tissue mask, bool (H, W), of uint8 RGB pixels (H, W, 3).

    Tissue is more saturated (HSV) than Otsu's threshold, is not above Otsu's threshold in all of
    R, G and B, and is above 50 in each; gaps are then closed with 3 iterations.

    Source: RNA-GAN (Cell Reports Methods 2023, 3:100534), tiling as published.
    """
    image = Image.fromarray(pixels)
    saturation = image.convert("HSV").getchannel("S")
    mask = np.asarray(saturation) > otsu_threshold(saturation.histogram())
    bright = np.ones_like(mask)
    for channel, histogram in enumerate(np.reshape(image.histogram(), (3, 256))):
        values = pixels[:, :, channel]
        bright &= values > otsu_threshold(histogram)
        mask &= values > DARKEST
    return close_mask(mask & ~bright, CLOSING_ITERATIONS)


def otsu_mask(pixels: np.ndarray) -> np.ndarray:
    """Return where the grey of uint8 RGB pixels (H, W, 3) is not above Otsu's threshold, closed.

    Source: Otsu 1979; the mask that most tiling tools offer under this name.
    """
    grey = Image.fromarray(pixels).convert("L")
    histogram = grey.histogram()
    if np.count_nonzero(histogram) < 2:  # one level: nothing is darker than the rest
        return np.zeros(pixels.shape[:2], bool)
    return close_mask(np.asarray(grey) <= otsu_threshold(histogram), CLOSING_ITERATIONS)


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "published": tissue_mask,
    "otsu": otsu_mask,
}


def close_mask(mask: np.ndarray, iterations: int) -> np.ndarray:
    """Return a bool mask dilated and then eroded so often, with the four direct neighbours.

    What lies outside the picture neither grows in nor eats away from the border.
    """
    padded = np.pad(mask, iterations)
    padded = _dilate(padded, iterations)
    inner = slice(iterations, -iterations)
    closed = ~_dilate(~np.pad(padded[inner, inner], iterations, mode="edge"), iterations)
    return closed[inner, inner]


def _dilate(mask: np.ndarray, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def is_low_contrast(pixels: np.ndarray) -> bool:
    """Return whether the middle 98 % of a tile's luminance span less than 5 % of the range.

    Args:
        pixels: uint8 RGB (H, W, 3).

    Source: definition of scikit-image's exposure.is_low_contrast with its default arguments.
    """
    if pixels.shape[0] * pixels.shape[1] >= SAMPLED_PX:
        # A fifth of every 16th pixel is more than 1 % of all: where a fifth is that dark and
        # another that bright, the percentiles lie further apart still.
        sample = np.asarray(_luminance(np.ascontiguousarray(pixels[::4, ::4]))).ravel()
        fifth = len(sample) // 5
        ranked = np.partition(sample, (fifth, len(sample) - 1 - fifth))
        if int(ranked[-1 - fifth]) - int(ranked[fifth]) >= 255 * SMALLEST_CONTRAST:
            return False
    ranked = np.cumsum(_luminance(pixels).histogram())
    ranks = np.array(CONTRAST_PERCENTILES) / 100 * (ranked[-1] - 1)
    # Percentiles between two ranks lie on the line between their values.
    below, above = (
        np.searchsorted(ranked, end(ranks), side="right") for end in (np.floor, np.ceil)
    )
    low, high = below + (above - below) * (ranks % 1)
    return bool((high - low) / 255 < SMALLEST_CONTRAST)


def _luminance(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("L", matrix=LUMINANCE)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the rim of a bool mask (H, W): its pixels with a neighbour outside it."""
    return mask & _dilate(~mask, 1)


class Candidates(NamedTuple):
    """Places of a grid that a slide's mask proposes.

    Attributes:
        tiles: int (N, 2), row and column, in raster order.
        tissue_fraction: (N,), share of each tile's area inside the mask.
    """

    tiles: np.ndarray
    tissue_fraction: np.ndarray


class SlideMask(NamedTuple):
    """What an overview shows, bool (H, W) each.

    Attributes:
        tissue: the tissue mask, artefacts cut out.
        artefacts: marker ink with its rim, and folds.
    """

    tissue: np.ndarray
    artefacts: np.ndarray


def slide_mask(
    overview: np.ndarray,
    keep_ink: bool = False,
    tissue: np.ndarray | None = None,
    fold_mpp: float | None = None,
) -> SlideMask:
    """Return the masks of a slide's overview.

    Args:
        overview: uint8 RGB (H, W, 3).
        keep_ink: look for no ink.
        tissue: bool (H, W); None: the published mask.
        fold_mpp: resolution of the overview, um/px, to look for folds; None: do not.
    """
    tissue = tissue_mask(overview) if tissue is None else tissue
    artefacts = np.zeros_like(tissue)
    if not keep_ink:
        artefacts |= _dilate(ink_mask(overview), CLOSING_ITERATIONS)
    if fold_mpp is not None:
        artefacts |= fold_mask(overview, tissue & ~artefacts, fold_mpp)
    return SlideMask(tissue & ~artefacts, artefacts)


def candidate_tiles(slide: Slide, grid: TileGrid, mask: SlideMask, anchor: str) -> Candidates:
    """Return the tiles whose upper left corner (or centre) is tissue and artefacts hardly touch.

    Args:
        mask: over the whole slide.
        anchor: "corner", as published, or "centre".
    """
    rows, columns = np.divmod(np.arange(grid.rows * grid.columns), grid.columns)
    tiles = np.stack([rows, columns], axis=1)
    shape = np.array(mask.tissue.shape)
    # Mask pixels per tile, down and across.
    step = grid.source_px * slide.level_mpps[grid.level] / slide.mpp * shape / slide.size[::-1]
    shift = 0.5 if anchor == "centre" else 0.0
    row, column = np.minimum(((tiles + shift) * step).astype(int), shape - 1).T
    tiles = tiles[mask.tissue[row, column]]
    tiles = tiles[_coverage(mask.artefacts, tiles, step) <= LARGEST_ARTEFACT]
    return Candidates(tiles, _coverage(mask.tissue, tiles, step))


def _coverage(mask: np.ndarray, tiles: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the share of each tile's area inside a mask, 0 to 1."""
    shape = np.array(mask.shape)
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, left = np.minimum((tiles * step).astype(int), shape - 1).T
    bottom, right = np.minimum(np.ceil((tiles + 1) * step).astype(int), shape).T
    covered = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return covered / ((bottom - top) * (right - left))


def kept_tiles(
    slide: Slide,
    grid: TileGrid,
    candidates: Candidates,
    max_tiles: int,
    min_tissue: float,
    tile_rule: str,
    generator: np.random.Generator,
    max_blur: float | None = None,
) -> Iterator[Tile]:
    """Yield the first `max_tiles` tiles that are kept, of the candidates in random order.

    Kept are tiles that are not low in contrast and of which more than `min_tissue` is tissue. They
    come in raster order within batches, because that is how a slide is read fastest. A batch is as
    large as the number still wanted, so that the choice is the random order's.

    Args:
        tile_rule: "slide" judges a tile by its share of the slide's mask; "own", as published, by a
            tissue mask of the tile with thresholds of its own, which refuses even tissue.
        max_blur: tiles more blurred than that (see `blur_of`) are not kept; None: not measured.

    Source: RNA-GAN (Cell Reports Methods 2023, 3:100534), tiling as published (min_tissue 0.2).
    """
    order = generator.permutation(len(candidates.tiles))
    if tile_rule == "slide":
        order = order[candidates.tissue_fraction[order] > min_tissue]
    kept = 0
    while kept < max_tiles and len(order):
        wanted = max_tiles - kept
        batch, order = np.sort(order[:wanted]), order[wanted:]
        tiles = candidates.tiles[batch]
        for number, pixels in zip(batch, slide.read_tiles(grid, tiles), strict=True):
            if is_low_contrast(pixels):
                continue
            if tile_rule == "own" and tissue_mask(pixels).mean() <= min_tissue:
                continue
            blur = None if max_blur is None else blur_of(pixels)
            if blur is not None and blur > max_blur:
                continue
            row, column = candidates.tiles[number]
            x, y = slide.place(grid, int(column), int(row))
            kept += 1
            yield Tile(x, y, float(candidates.tissue_fraction[number]), pixels, blur)


def draw_overview(
    slide: Slide,
    grid: TileGrid,
    overview: np.ndarray,
    mask: np.ndarray,
    places: Sequence[tuple[int, int]],
) -> Image.Image:
    """Return the overview with the mask's outline in green and the tiles framed in blue.

    Args:
        overview: uint8 RGB (H, W, 3) of the whole slide.
        mask: bool, of the whole slide, of any size.
        places: x and y of each tile in pixels of level 0.
    """
    height, width = overview.shape[:2]
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    pixels = overview.copy()
    pixels[outline(np.asarray(resized))] = OUTLINE_COLOUR
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    step = width / slide.size[0]
    side = grid.tile_px * grid.mpp / slide.mpp
    for x, y in places:
        box = (x * step, y * step, (x + side) * step, (y + side) * step)
        draw.rectangle(box, outline=FRAME_COLOUR)
    return picture
