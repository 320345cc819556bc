"""Simulated H&E tissue: sections of lung and brain cortex drawn from four known factors.

A section is built as maps of stain concentration at 0.5 um per pixel and turned into colour by
absorption. Its architecture is a field in um on a coarse grid, which grows away from tissue: there
is airspace where it exceeds a threshold, and the threshold is set so that the fraction is met.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from data.synthetic_canvas import (
    DRAW_MPP,
    GRID_PX,
    GRID_UM,
    Canvas,
    Staining,
    add_fold,
    add_nuclei,
    add_red_cells,
    area_mm2,
    develop,
    value_at,
)
from data.synthetic_nuclei import Cells, place_cells, stamp
from data.synthetic_stroma import brain_stroma, lung_stroma
from data.synthetic_textures import level_direction, scattered_points, smooth_field

TISSUES = ("lung", "brain")
ALVEOLUS_UM = 68.0
NEURON_SHARE = 0.08


class TissueFactors(NamedTuple):
    """What is known about a drawn section.

    Attributes:
        nuclear_density: nuclei per mm2 of tissue, airspace not counted.
        nuclear_diameter_um: mean over nuclei of the diameter of the circle of equal area.
        stain_ratio: hematoxylin over eosin concentration, relative to an average slide (1).
        airspace_fraction: share of the section without tissue: alveoli (lung), vacuoles (brain).
    """

    nuclear_density: float
    nuclear_diameter_um: float
    stain_ratio: float
    airspace_fraction: float


# Lowest and highest value of the factors, in the order of TissueFactors.
FACTOR_RANGES = {
    "lung": ((1800, 4800), (5.2, 8.4), (0.55, 1.7), (0.35, 0.75)),
    "brain": ((1000, 3200), (5.8, 9.6), (0.55, 1.7), (0.01, 0.15)),
}


def draw_section(
    tissue: str,
    factors: TissueFactors,
    staining: Staining,
    size_px: int,
    rng: np.random.Generator,
    outline: bool = True,
    fold: bool = False,
) -> np.ndarray:
    """Return a drawn section as uint8 RGB (size_px, size_px, 3) at DRAW_MPP.

    Args:
        tissue: "lung" or "brain".
        factors: what to draw; density and airspace are met over the section as a whole.
        staining: see `random_staining`.
        size_px: side, a multiple of GRID_PX.
        rng: everything random is drawn from it.
        outline: an irregular section on empty glass; otherwise tissue up to the border.
        fold: add a band in which the tissue lies double.
    """
    grid = (size_px // GRID_PX,) * 2
    edge_um = _section_depth(grid, rng) if outline else np.full(grid, 1e3, np.float32)
    draw = {"lung": _draw_lung, "brain": _draw_brain}[tissue]
    canvas = draw(factors, staining, edge_um, rng)
    if fold:
        add_fold(canvas, rng)
    return develop(canvas, factors.stain_ratio, staining, rng)


def _section_depth(grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return how deep in an irregular blunt square each grid cell lies, um, negative outside."""
    side = grid[0]
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(axis * rng.uniform(1.0, 1.08), axis * rng.uniform(1.0, 1.08), indexing="ij")
    blunt = (np.abs(x) ** 4 + np.abs(y) ** 4) ** 0.25
    wobble = 0.045 * smooth_field(grid, side / 3, rng) + 0.012 * smooth_field(grid, side / 14, rng)
    return ((0.90 + wobble - blunt) * side / 2 * GRID_UM).astype(np.float32)


def _threshold(field: np.ndarray, inside: np.ndarray, share: float) -> float:
    """Return the value that `share` of the field inside the section exceeds."""
    return float(np.quantile(field[inside], 1 - share))


def _warped_grid(
    grid: tuple[int, int], amplitude_um: float, period_um: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the positions (y, x) of grid cells in um, float (h * w, 2), bent by a smooth field."""
    y, x = np.meshgrid(*[(np.arange(side) + 0.5) * GRID_UM for side in grid], indexing="ij")
    bent = [axis + amplitude_um * smooth_field(grid, period_um / GRID_UM, rng) for axis in (y, x)]
    return np.stack([axis.ravel() for axis in bent], axis=1)


# Lung


def _draw_lung(
    factors: TissueFactors, staining: Staining, edge_um: np.ndarray, rng: np.random.Generator
) -> Canvas:
    field, vessel_um = _alveoli(edge_um.shape, rng)
    inside = edge_um > 0
    threshold = _threshold(field, inside, factors.airspace_fraction)
    depth_grid = np.minimum(threshold - field, edge_um)
    flow = level_direction(field)
    canvas = lung_stroma(depth_grid, flow, vessel_um, rng)

    count = round(factors.nuclear_density * area_mm2(depth_grid > 0))
    room = (depth_grid > 1.0) & (vessel_um > -11)
    relative = rng.lognormal(0, 0.14, count)
    centre = place_cells(room, GRID_UM, relative * factors.nuclear_diameter_um, rng)
    relative *= count / relative.sum()
    thin = value_at(depth_grid, centre) < 6
    elongation = np.where(thin, rng.uniform(1.2, 2.2, count), rng.uniform(1.0, 1.7, count))
    nuclei = Cells(
        centre,
        relative * factors.nuclear_diameter_um,
        elongation,
        value_at(flow, centre) + rng.normal(0, 0.3, count),
        np.full(count, 0.05),
    )
    add_red_cells(canvas, (depth_grid > 1.5) & (vessel_um > 0), 700 * staining.congestion, rng)
    add_red_cells(
        canvas, (vessel_um < -14) & (edge_um > 4), 9000 * min(staining.congestion, 1.0), rng
    )
    add_nuclei(canvas, nuclei, rng.normal(1.45, 0.22, count), rng)
    return canvas


def _alveoli(grid: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances from the middle of septa and from the outer wall of vessels, um."""
    side_um = grid[0] * GRID_UM
    points = scattered_points(side_um, ALVEOLUS_UM, rng)
    position = _warped_grid(grid, 7, 50, rng)
    # some neighbours share one airspace (ducts): their common wall is left out
    space = np.arange(len(points))
    _, neighbour = cKDTree(points).query(points, k=3)
    joined = rng.random(len(points)) < 0.3
    space[joined] = space[neighbour[joined, 1]]
    distance, nearest = cKDTree(points).query(position, k=5)
    other = space[nearest] != space[nearest[:, :1]]
    other[:, -1] = True
    beyond = np.take_along_axis(distance, other.argmax(axis=1)[:, None], axis=1)[:, 0]
    field = ((beyond - distance[:, 0]) / 2).reshape(grid)
    field /= np.exp(0.28 * smooth_field(grid, 35, rng))

    vessels = scattered_points(side_um, 330, rng, 0.25)
    radius = rng.uniform(20, 42, len(vessels))
    span, which = cKDTree(vessels).query(_warped_grid(grid, 4, 60, rng))
    vessel_um = (span - radius[which]).reshape(grid)
    return np.minimum(field, vessel_um).astype(np.float32), vessel_um.astype(np.float32)


# Brain cortex


class _BrainCells(NamedTuple):
    somata: Cells
    neurons: Cells
    glia: Cells


def _draw_brain(
    factors: TissueFactors, staining: Staining, edge_um: np.ndarray, rng: np.random.Generator
) -> Canvas:
    up = rng.uniform(0, np.pi)  # the direction that the large neurons and many fibres point in
    flow = up + 0.7 * smooth_field(edge_um.shape, 60, rng)
    cells, depth_grid = _brain_cells(factors, edge_um, up, flow, rng)
    canvas = brain_stroma(depth_grid, flow, rng)
    cover, body = np.zeros((2, *canvas.eosin.shape), np.float32)
    strength = rng.uniform(0.85, 1.15, len(cells.somata))
    stamp(body, cells.somata, DRAW_MPP, strength, rng, chromatin=0.22, coverage=cover)
    canvas.hematoxylin = canvas.hematoxylin * (1 - cover) + 0.34 * body
    canvas.eosin = canvas.eosin * (1 - cover) + 0.46 * body
    add_red_cells(canvas, depth_grid > 3, 25 * staining.congestion, rng)
    add_nuclei(canvas, cells.glia, rng.normal(1.4, 0.25, len(cells.glia)), rng)
    add_nuclei(canvas, cells.neurons, rng.normal(1.1, 0.12, len(cells.neurons)), rng)
    return canvas


def _brain_cells(
    factors: TissueFactors,
    edge_um: np.ndarray,
    up: float,
    flow: np.ndarray,
    rng: np.random.Generator,
) -> tuple[_BrainCells, np.ndarray]:
    """Return the cells of a section and how deep in tissue each grid cell lies, um."""
    inside = edge_um > 0
    size = factors.nuclear_diameter_um
    section_mm2 = area_mm2(inside)
    count = round(factors.nuclear_density * section_mm2 * (1 - factors.airspace_fraction))
    neuron_count = round(NEURON_SHARE * count)
    glia_count = count - neuron_count

    neuron_size = rng.lognormal(0.35, 0.12, neuron_count)
    centre = place_cells(edge_um > 8, GRID_UM, 2.6 * size * neuron_size, rng)
    angle = up + rng.normal(0, 0.25, neuron_count)
    stretch = rng.uniform(1.15, 1.7, neuron_count)
    bumps = np.full(neuron_count, 0.11)
    somata = Cells(centre, 1.75 * size * neuron_size, stretch, angle, bumps)

    field = _vacuoles(edge_um.shape, factors.airspace_fraction, section_mm2, somata, rng)
    threshold = _threshold(field, inside, factors.airspace_fraction)
    depth_grid = np.minimum(threshold - field, edge_um)

    glia_size = rng.lognormal(0, 0.16, glia_count)
    place = place_cells(depth_grid > 2, GRID_UM, size * glia_size, rng, obstacles=somata)
    scale = size * count / (glia_size.sum() + neuron_size.sum())
    stretch = 1 + rng.exponential(0.22, glia_count)
    turn = value_at(flow, place) + rng.normal(0, 0.8, glia_count)
    glia = Cells(place, scale * glia_size, stretch, turn, np.full(glia_count, 0.045))

    centre = centre + rng.normal(0, 0.4, centre.shape)
    stretch = rng.uniform(1.0, 1.2, neuron_count)
    neurons = Cells(centre, scale * neuron_size, stretch, angle, np.full(neuron_count, 0.03))
    return _BrainCells(somata, neurons, glia), depth_grid


def _vacuoles(
    grid: tuple[int, int],
    share: float,
    section_mm2: float,
    somata: Cells,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return how far inside a vacuole, halo or lumen each grid cell lies, um, negative outside."""
    side = grid[0] * GRID_UM
    mean_area_um2 = 70.0
    number = 20 + round(1.3 * share * section_mm2 * 1e6 / mean_area_um2)
    radius = rng.lognormal(np.log(4.2), 0.35, number)
    centre = rng.uniform(0, side, (number, 2))
    # a halo is a vacuole that lies off the middle of a neuron, which covers part of it
    halo = rng.random(len(somata)) < min(1.0, 8 * share)
    turn = rng.uniform(0, 2 * np.pi, len(somata))[:, None]
    offset = 0.25 * somata.diameter_um[:, None] * np.hstack([np.cos(turn), np.sin(turn)])
    centre = np.vstack([centre, (somata.centre_um + offset)[halo]])
    radius = np.concatenate([radius, 0.58 * somata.diameter_um[halo]])
    position = _warped_grid(grid, 2.0, 14, rng)
    distance, nearest = cKDTree(centre).query(position, k=4)
    return (radius[nearest] - distance).max(axis=1).reshape(grid).astype(np.float32)
