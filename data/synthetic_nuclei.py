"""Nuclei of simulated tissue: where they lie and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from data.synthetic_textures import TEXTURE_PX, periodic_noise

CHUNK = 512
CLEARANCES = (1.0, 0.85, 0.7, 0.5, 0.3, 0.0)


@dataclass
class Cells:
    """N bodies (nuclei, cell bodies, red cells); every attribute is float (N,) unless said.

    Attributes:
        centre_um: (N, 2) position (y, x).
        diameter_um: of the circle of equal area.
        elongation: long axis over short axis, 1 or more.
        angle: of the long axis, radians from the x axis.
        irregularity: how far the outline departs from an ellipse, 0 to about 0.2.
    """

    centre_um: np.ndarray
    diameter_um: np.ndarray
    elongation: np.ndarray
    angle: np.ndarray
    irregularity: np.ndarray

    def __len__(self) -> int:
        return len(self.diameter_um)

    def rows(self, keep: np.ndarray) -> Cells:
        """Return the cells of a mask or of row numbers."""
        return Cells(
            self.centre_um[keep],
            self.diameter_um[keep],
            self.elongation[keep],
            self.angle[keep],
            self.irregularity[keep],
        )


def place_cells(
    allowed: np.ndarray,
    cell_um: float,
    diameter_um: np.ndarray,
    rng: np.random.Generator,
    obstacles: Cells | None = None,
) -> np.ndarray:
    """Return positions (N, 2) (y, x) in um, one per diameter, allowed and apart from each other.

    Where the area is too crowded the distances shrink step by step, down to overlap, so that the
    number asked for is always placed.

    Args:
        allowed: float or bool (h, w), relative probability of each grid cell.
        cell_um: side of a grid cell.
        diameter_um: (N,) sizes to place.
        obstacles: cells already there.
    """
    count = len(diameter_um)
    candidates = 4 * count + 50
    cumulative = np.cumsum(allowed, dtype=np.float64)
    index = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], candidates), side="right")
    position = np.stack(np.unravel_index(index, allowed.shape), axis=1) + rng.random(
        (candidates, 2)
    )
    position *= cell_um
    radius = np.resize(diameter_um, candidates) / 2
    reach = float(2 * radius.max())
    pairs = cKDTree(position).query_pairs(reach, output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    gap = np.linalg.norm(position[pairs[:, 0]] - position[pairs[:, 1]], axis=1)
    gap /= radius[pairs[:, 0]] + radius[pairs[:, 1]]
    for clearance in CLEARANCES:
        kept = np.ones(candidates, bool)
        if obstacles is not None and len(obstacles):
            distance, nearest = cKDTree(obstacles.centre_um).query(position)
            kept = distance > clearance * (radius + obstacles.diameter_um[nearest] / 2)
        for first, second in pairs[gap < clearance]:
            if kept[first]:
                kept[second] = False
        if kept.sum() >= count:
            break
    return position[np.flatnonzero(kept)[:count]]


def stamp(
    canvas: np.ndarray,
    cells: Cells,
    mpp: float,
    density: np.ndarray,
    rng: np.random.Generator,
    chromatin: float = 0.0,
    rim: float = 0.0,
    coverage: np.ndarray | None = None,
) -> None:
    """Draw cells onto a canvas of stain concentration; where they overlap the denser one shows.

    Args:
        canvas: float32 (H, W), changed in place.
        mpp: um per pixel of the canvas.
        density: (N,) stain concentration of each cell.
        chromatin: contrast of the granules inside, 0 for none.
        rim: how much denser the outline is than the inside, 0 for not at all.
        coverage: float32 (H, W) in [0, 1], changed in place: how much of each pixel cells cover.
    """
    texture = periodic_noise(0.7 / mpp, 0.7 / mpp, number=91)
    side = (
        int(np.ceil(1.45 * float((cells.diameter_um * np.sqrt(cells.elongation)).max()) / mpp)) + 3
    )
    for start in range(0, len(cells), CHUNK):
        part = cells.rows(slice(start, start + CHUNK))
        corner = np.floor(part.centre_um / mpp - side / 2).astype(int)
        inside, radius = _shapes(part, corner, side, mpp, rng)
        value = inside
        if chromatin:
            offset = rng.integers(0, TEXTURE_PX - side, (len(part), 2))
            step = np.arange(side)
            rows = (offset[:, 0, None] + step)[:, :, None]
            columns = (offset[:, 1, None] + step)[:, None, :]
            value = inside * (1 + chromatin * texture[rows, columns])
        if rim:
            value = value + inside * rim * np.exp(-(((radius - 0.9) / 0.14) ** 2))
        value = np.maximum(value, 0) * density[start : start + CHUNK, None, None]
        for number, (top, left) in enumerate(corner):
            window, patch = _overlap(canvas.shape, top, left, side)
            if window is None:
                continue
            np.maximum(canvas[window], value[number][patch], out=canvas[window])
            if coverage is not None:
                np.maximum(coverage[window], inside[number][patch], out=coverage[window])


def _shapes(
    cells: Cells, corner: np.ndarray, side: int, mpp: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and relative radius (N, side, side) of cells in patches at `corner`."""
    step = np.arange(side, dtype=np.float32)
    centre = (cells.centre_um / mpp - corner).astype(np.float32)
    y = step[None, :, None] + 0.5 - centre[:, 0, None, None]
    x = step[None, None, :] + 0.5 - centre[:, 1, None, None]
    cosine = np.cos(cells.angle).astype(np.float32)[:, None, None]
    sine = np.sin(cells.angle).astype(np.float32)[:, None, None]
    half = (cells.diameter_um / 2 / mpp).astype(np.float32)[:, None, None]
    stretch = np.sqrt(cells.elongation).astype(np.float32)[:, None, None]
    along = (cosine * x + sine * y) / (half * stretch)
    across = (cosine * y - sine * x) / (half / stretch)
    square = along**2 + across**2
    radius = np.sqrt(square)
    # cos and sin of 2 and 3 times the polar angle, without computing the angle
    twice, triple = (along**2 - across**2), along * (along**2 - 3 * across**2)
    skew = across * (3 * along**2 - across**2)
    bumps = rng.normal(0, 1, (3, len(cells), 1, 1)).astype(np.float32)
    bumps *= cells.irregularity.astype(np.float32)[:, None, None]
    safe = np.maximum(square, 0.05)
    outline = 1 + bumps[0] * twice / safe
    outline += (bumps[1] * triple + bumps[2] * skew) / (safe * np.sqrt(safe))
    softness = 0.5 / mpp  # the edge fades over 0.5 um
    inside = np.clip((outline - radius) * half / softness + 0.5, 0, 1)
    return inside, radius / np.maximum(outline, 0.3)


def _overlap(
    shape: tuple[int, int], top: int, left: int, side: int
) -> tuple[tuple[slice, slice] | None, tuple[slice, slice]]:
    bottom, right = min(top + side, shape[0]), min(left + side, shape[1])
    first_row, first_column = max(top, 0), max(left, 0)
    if bottom <= first_row or right <= first_column:
        return None, (slice(0), slice(0))
    return (
        (slice(first_row, bottom), slice(first_column, right)),
        (slice(first_row - top, bottom - top), slice(first_column - left, right - left)),
    )
