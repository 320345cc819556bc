"""What simulated tissue is drawn on: stain concentrations, added bodies, colour, artefacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.synthetic_nuclei import Cells, place_cells, stamp
from data.synthetic_textures import enlarge, periodic_noise, smooth_field, spread

DRAW_MPP = 0.5
GRID_PX = 4
GRID_UM = GRID_PX * DRAW_MPP

# Optical density per unit of concentration in R, G, B, unit length; after Ruifrok and Johnston
# 2001, the eosin shifted towards the pink of scanned slides.
HEMATOXYLIN = np.array([0.64, 0.70, 0.32])
EOSIN = np.array([0.16, 0.91, 0.38])
RED_CELL = np.array([0.06, 0.87, 0.49])


class Staining(NamedTuple):
    """The look of one donor's slides, unrelated to the factors.

    Attributes:
        intensity: of both stains, 1 on average.
        hematoxylin, eosin, red_cell: (3,) optical density per unit of concentration.
        background: (3,) colour of empty glass, 0 to 255.
        congestion: how many red cells, 1 on average.
    """

    intensity: float
    hematoxylin: np.ndarray
    eosin: np.ndarray
    red_cell: np.ndarray
    background: np.ndarray
    congestion: float


def random_staining(rng: np.random.Generator) -> Staining:
    """Return the staining of a donor: intensity within 12 %, hues turned by 1 to 2 degrees."""

    def turned(vector: np.ndarray) -> np.ndarray:
        moved = np.clip(vector + rng.normal(0, 0.02, 3), 0.02, None)
        return moved / np.linalg.norm(moved)

    return Staining(
        intensity=float(rng.uniform(0.88, 1.12)),
        hematoxylin=turned(HEMATOXYLIN),
        eosin=turned(EOSIN),
        red_cell=turned(RED_CELL),
        background=np.array([243.0, 241.5, 243.5]) + rng.normal(0, 1.2, 3),
        congestion=float(rng.uniform(0.3, 1.6)),
    )


@dataclass
class Canvas:
    """Stain concentrations, float32 (H, W) each."""

    hematoxylin: np.ndarray
    eosin: np.ndarray
    red_cell: np.ndarray


def area_mm2(mask: np.ndarray) -> float:
    """Return the area of a mask of grid cells."""
    return float(mask.sum()) * GRID_UM**2 / 1e6


def value_at(field: np.ndarray, centre_um: np.ndarray) -> np.ndarray:
    """Return the field's value at positions (N, 2) in um."""
    row, column = (centre_um // GRID_UM).astype(int).clip(0, np.array(field.shape) - 1).T
    return field[row, column]


def add_nuclei(
    canvas: Canvas, nuclei: Cells, density: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw nuclei with chromatin; `density` (N,) is their mean hematoxylin concentration."""
    cover = np.zeros_like(canvas.eosin)
    density = np.clip(density, 0.7, 2.2)
    stamp(canvas.hematoxylin, nuclei, DRAW_MPP, density, rng, 0.24, 0.3, cover)
    canvas.eosin *= 1 - 0.4 * cover
    canvas.red_cell *= 1 - cover


def add_red_cells(
    canvas: Canvas, allowed: np.ndarray, per_mm2: float, rng: np.random.Generator
) -> None:
    """Draw red cells, so many per mm2 of the allowed grid cells (bool (h, w))."""
    count = round(per_mm2 * area_mm2(allowed))
    if not count:
        return
    diameter = rng.normal(6.2, 0.4, count)
    cells = Cells(
        place_cells(allowed, GRID_UM, diameter, rng),
        diameter,
        rng.uniform(1.0, 1.6, count),
        rng.uniform(0, np.pi, count),
        np.full(count, 0.04),
    )
    cover = np.zeros_like(canvas.eosin)
    stamp(canvas.red_cell, cells, DRAW_MPP, rng.normal(1.1, 0.15, count), rng, 0.05, 0.0, cover)
    canvas.eosin *= 1 - 0.8 * cover
    canvas.hematoxylin *= 1 - 0.8 * cover


def add_fold(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add the tissue beside a curved line once more on top of it: a band about 60 um wide."""
    shape = canvas.eosin.shape
    y, x = np.meshgrid(*[np.linspace(-1, 1, side // GRID_PX) for side in shape], indexing="ij")
    angle = rng.uniform(0, np.pi)
    line = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.4, 0.4)
    line += 0.05 * smooth_field(line.shape, shape[0] / GRID_PX / 3, rng)
    half = 30.0 / (shape[0] * DRAW_MPP / 2)
    band = enlarge(np.clip((half - np.abs(line)) / 0.004, 0, 1), shape)
    shift = rng.integers(60, 160, 2)
    for layer in (canvas.hematoxylin, canvas.eosin, canvas.red_cell):
        layer += band * np.roll(layer, shift, axis=(0, 1))


def develop(
    canvas: Canvas, stain_ratio: float, staining: Staining, rng: np.random.Generator
) -> np.ndarray:
    """Return the picture, uint8 RGB (H, W, 3): absorption, slight blur of the optics, sensor noise.

    Source: Beer-Lambert law; the stain ratio moves both stains by its root, in opposite directions.
    """
    shape = canvas.eosin.shape
    balance = np.sqrt(stain_ratio)
    layers = (
        (canvas.hematoxylin, staining.hematoxylin * staining.intensity * balance),
        (canvas.eosin, staining.eosin * staining.intensity / balance),
        (canvas.red_cell, staining.red_cell),
    )
    picture = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        density = sum(layer * np.float32(vector[channel]) for layer, vector in layers)
        picture[..., channel] = staining.background[channel] * np.exp(-density)
    blurred = np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.6)))
    return add_noise(blurred, rng)


def add_noise(picture: np.ndarray, rng: np.random.Generator, level: float = 2.0) -> np.ndarray:
    """Return uint8 pixels with sensor noise of the given standard deviation."""
    height, width = picture.shape[:2]
    noise = spread(periodic_noise(0.35, 0.35, number=40), (height + 200, width + 200), rng)
    for channel in range(3):
        top, left = rng.integers(0, 200, 2)
        noisy = picture[..., channel] + level * noise[top : top + height, left : left + width]
        picture[..., channel] = np.clip(noisy, 0, 255, out=noisy)
    return picture


def enlarge_scan(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture as scanned at twice the resolution: enlarged, with noise anew."""
    side = 2 * picture.shape[0]
    return add_noise(np.array(Image.fromarray(picture).resize((side, side), Image.BICUBIC)), rng)


def draw_pen(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture with a stroke of a blue, green or black felt pen along one border."""
    size = picture.shape[0]
    inks = ((40, 60, 165), (35, 120, 75), (35, 35, 42))
    ink = inks[rng.integers(len(inks))]
    along = np.linspace(-0.05, rng.uniform(0.35, 0.6), 24)
    across = rng.uniform(0.03, 0.07) + 0.02 * np.sin(along * rng.uniform(5, 12) + rng.uniform(0, 6))
    points = np.stack([along, across] if rng.integers(2) else [across, along], axis=1) * size
    mask = Image.new("L", (size, size), 0)
    line = [tuple(point) for point in points]
    ImageDraw.Draw(mask).line(line, fill=225, width=round(0.035 * size), joint="curve")
    mask = mask.filter(ImageFilter.GaussianBlur(3))
    inked = Image.composite(Image.new("RGB", (size, size), ink), Image.fromarray(picture), mask)
    return np.array(inked)
