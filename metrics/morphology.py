"""Morphology measured on H&E tiles: nuclear density and size, stain ratio, airspace.

The stains are separated by colour deconvolution with fixed vectors, nuclei are found in the
hematoxylin map. Everything works at about 1 um per pixel, whatever the tiles come in, so that sets
of different resolution compare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Optical density per unit of concentration in R, G, B; after Ruifrok and Johnston 2001, the eosin
# shifted towards the pink of scanned slides. The third row takes up what the two do not explain.
HEMATOXYLIN = (0.64, 0.70, 0.32)
EOSIN = (0.16, 0.91, 0.38)

WORKING_MPP = 1.0
WHITE = 243.0
STAINED_DENSITY = 0.10
AIRSPACE_SHARE = 0.40  # of the typical optical density of the tissue
AIRSPACE_DENSITIES = (0.06, 0.14)
AVERAGE_RATIO = 4.2  # of a simulated slide with stain ratio 1
SMOOTHING_UM = 0.8
MIN_NUCLEAR_HEMATOXYLIN = 0.3
MIN_RADIUS_UM = 1.5
AIRSPACE_BASE = 0.12  # of the optical density of glass, at most
INK_DENSITY = 0.45
INK_REDNESS = 0.97  # least ratio of the optical densities in red and green; below in any H&E
INK_UM = 13.0  # least width
BATCH = 256


class Morphology(NamedTuple):
    """Measured factors: of a set of tiles (floats) or of each tile (float arrays (N,)).

    Attributes:
        nuclear_density: nuclei per mm2 of tissue; NaN without tissue.
        nuclear_diameter_um: of the circle of the mean nuclear area; NaN without a nucleus.
        stain_ratio: hematoxylin of nuclei over eosin around them, 1 on average; NaN without.
        airspace_fraction: share of the area without stain, 0 to 1; NaN where all is ink.
    """

    nuclear_density: float | np.ndarray
    nuclear_diameter_um: float | np.ndarray
    stain_ratio: float | np.ndarray
    airspace_fraction: float | np.ndarray


class _StainMaps(NamedTuple):
    """Maps (N, H, W): stain concentrations, mean optical density, where there is ink (bool)."""

    hematoxylin: np.ndarray
    eosin: np.ndarray
    density: np.ndarray
    ink: np.ndarray


class _TileSums(NamedTuple):
    """What is added up over tiles, float (N,) each; lengths in pixels of the working resolution."""

    area: np.ndarray
    tissue: np.ndarray
    nuclei: np.ndarray
    nuclear_area: np.ndarray
    hematoxylin: np.ndarray
    eosin: np.ndarray


def morphology_of_tiles(pixels: np.ndarray, mpp: float) -> Morphology:
    """Return the morphology of a set of tiles as one number per factor.

    Tiles without tissue count as airspace only. Densities and diameters are pooled over all nuclei,
    airspace is the mean of the middle half of the tiles, so that a section's border does not count.

    Args:
        pixels: uint8 RGB (N, H, W, 3), N 1 or more, of one tissue and stain.
        mpp: um per pixel, 0.1 to 2.

    Returns:
        floats; NaN where the tiles hold no tissue or no nucleus, as `Morphology` says.

    Source: Ruifrok and Johnston 2001 for the separation of stains.
    """
    sums, scale = _measure(pixels, mpp)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Morphology(
            float(sums.nuclei.sum() / (sums.tissue.sum() * scale**2) * 1e6),
            float(_diameter(sums.nuclear_area.sum() / sums.nuclei.sum()) * scale),
            float(_median(sums.hematoxylin) / _median(sums.eosin)) / AVERAGE_RATIO,
            _middle_mean(1 - sums.tissue / sums.area),
        )


def morphology_per_tile(pixels: np.ndarray, mpp: float) -> Morphology:
    """Return the morphology of each tile: float arrays (N,); arguments as `morphology_of_tiles`.

    The limit between nucleus and other tissue is that of the set.
    """
    sums, scale = _measure(pixels, mpp)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Morphology(
            sums.nuclei / (sums.tissue * scale**2) * 1e6,
            _diameter(sums.nuclear_area / sums.nuclei) * scale,
            sums.hematoxylin / sums.eosin / AVERAGE_RATIO,
            1 - sums.tissue / sums.area,
        )


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Return the optical density float32 (..., 3) of RGB pixels (..., 3), 0 to 255."""
    return -np.log(np.maximum(pixels, 1.0, dtype=np.float32) / np.float32(WHITE))


def stain_concentrations(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hematoxylin and eosin (...) from optical density (..., 3), float32.

    Source: Ruifrok and Johnston 2001; the third stain is orthogonal to the two.
    """
    basis = np.array([HEMATOXYLIN, EOSIN, np.cross(HEMATOXYLIN, EOSIN)])
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    concentration = density @ np.linalg.inv(basis).astype(np.float32)[:, :2]
    return concentration[..., 0], concentration[..., 1]


def _measure(pixels: np.ndarray, mpp: float) -> tuple[_TileSums, float]:
    """Return sums per tile and the working resolution in um per pixel."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
        raise ValueError(f"tiles of shape {pixels.shape}: (N, H, W, 3) with N >= 1 is needed")
    factor = max(1, round(WORKING_MPP / mpp))
    scale = mpp * factor
    maps = [
        _stain_maps(_shrink(pixels[start : start + BATCH], factor), scale)
        for start in range(0, len(pixels), BATCH)
    ]
    base, tissue_limit = _tissue_limit(np.concatenate([each.density[~each.ink] for each in maps]))
    tissues = [~each.ink & (each.density - base > tissue_limit) for each in maps]
    limit = _nuclear_limit(
        [each.hematoxylin[tissue] for each, tissue in zip(maps, tissues, strict=True)]
    )
    parts = [
        _sum_tiles(each, tissue, limit, scale) for each, tissue in zip(maps, tissues, strict=True)
    ]
    return _TileSums(*(np.concatenate(column) for column in zip(*parts, strict=True))), scale


def _shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return pixels averaged over blocks of factor x factor; what remains is cut off."""
    if factor == 1:
        return pixels
    count, height, width, _ = pixels.shape
    rows, columns = height // factor, width // factor
    blocks = pixels[:, : rows * factor, : columns * factor]
    blocks = blocks.reshape(count, rows, factor, columns, factor, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _stain_maps(pixels: np.ndarray, scale: float) -> _StainMaps:
    density = optical_density(pixels)
    hematoxylin, eosin = stain_concentrations(density)
    sigma = SMOOTHING_UM / scale
    smooth = ndimage.gaussian_filter(density, (0, sigma, sigma, 0), mode="nearest")
    hematoxylin = ndimage.gaussian_filter(hematoxylin, (0, sigma, sigma), mode="nearest")
    mean = smooth.mean(axis=-1)
    # the stains absorb more green than red; ink over a wide region does not
    inky = (mean > INK_DENSITY) & (smooth[..., 0] > INK_REDNESS * smooth[..., 1])
    side = round(INK_UM / scale)
    core = ndimage.minimum_filter(inky, (1, side, side), mode="nearest")
    return _StainMaps(hematoxylin, eosin, mean, _regions_with(mean > INK_DENSITY, core))


def _tissue_limit(density: np.ndarray) -> tuple[float, float]:
    """Return the optical density of glass, and how much more than that makes tissue of a set."""
    if not len(density):
        return 0.0, AIRSPACE_DENSITIES[0]
    base = float(np.clip(np.quantile(density, 0.005), 0, AIRSPACE_BASE))
    stained = density[density > base + STAINED_DENSITY]
    typical = float(np.median(stained)) - base if len(stained) else 0.0
    return base, float(np.clip(AIRSPACE_SHARE * typical, *AIRSPACE_DENSITIES))


def _nuclear_limit(hematoxylin: list[np.ndarray]) -> float:
    """Return the hematoxylin concentration that separates nuclei from other tissue of the set."""
    values = np.concatenate(hematoxylin)
    return max(_otsu(values), MIN_NUCLEAR_HEMATOXYLIN) if len(values) else np.inf


def _otsu(values: np.ndarray) -> float:
    """Return the limit that separates values into two classes with the least variance within.

    Source: Otsu 1979.
    """
    counts, edges = np.histogram(values, bins=256)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * middle)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1 + np.nanargmax(between)]) if np.isfinite(between).any() else np.inf


def _sum_tiles(maps: _StainMaps, tissue: np.ndarray, limit: float, scale: float) -> _TileSums:
    count, height, width = tissue.shape
    nuclear = (maps.hematoxylin > limit) & tissue
    # depth inside nuclei; tiles lie far apart along the first axis, so none reaches into the next
    depth = ndimage.distance_transform_edt(nuclear, sampling=(1e3, 1, 1))
    sigma = 0.7 / scale
    smooth = ndimage.gaussian_filter(depth.astype(np.float32), (0, sigma, sigma), mode="nearest")
    reach = 2 * round(1.6 / scale) + 1
    peak = nuclear & (smooth >= ndimage.maximum_filter(smooth, (1, reach, reach)))
    peak &= depth >= MIN_RADIUS_UM / scale
    tile, row, column = np.nonzero(peak)
    border = (row == 0) | (column == 0) | (row == height - 1) | (column == width - 1)
    # a nucleus cut by the border is half inside on average
    nuclei = np.bincount(tile, np.where(border, 0.5, 1.0), count)
    other = tissue & (maps.hematoxylin < 0.6 * limit)
    return _TileSums(
        area=(~maps.ink).sum(axis=(1, 2)).astype(float),
        tissue=tissue.sum(axis=(1, 2)).astype(float),
        nuclei=nuclei,
        nuclear_area=nuclear.sum(axis=(1, 2)).astype(float),
        hematoxylin=_masked(maps.hematoxylin, nuclear, 0.9),
        eosin=_masked(maps.eosin, other, 0.5),
    )


def _regions_with(mask: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Return the connected regions of a mask (N, H, W), tile by tile, that hold a marked pixel."""
    if not marked.any():
        return np.zeros_like(mask)
    flat = ndimage.generate_binary_structure(2, 1)[None]
    label, count = ndimage.label(mask, np.pad(flat, ((1, 1), (0, 0), (0, 0))))
    held = np.zeros(count + 1, bool)
    held[label[marked]] = True
    held[0] = False
    return held[label]


def _diameter(area: np.ndarray) -> np.ndarray:
    """Return the diameter of circles of a given area."""
    return 2 * np.sqrt(area / np.pi)


def _masked(values: np.ndarray, mask: np.ndarray, quantile: float) -> np.ndarray:
    """Return a quantile over the masked pixels of each tile, NaN where there are fewer than 4."""
    return np.array(
        [
            np.quantile(tile[keep], quantile) if np.count_nonzero(keep) >= 4 else np.nan
            for tile, keep in zip(values, mask, strict=True)
        ]
    )


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _middle_mean(values: np.ndarray) -> float:
    ordered = np.sort(values[np.isfinite(values)])
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean()) if len(ordered) else float("nan")
