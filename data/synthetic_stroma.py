"""What lies between the nuclei of simulated tissue: lung septa and vessels, brain neuropil."""

from __future__ import annotations

import numpy as np

from data.synthetic_canvas import GRID_PX, Canvas
from data.synthetic_textures import enlarge, fibres, periodic_noise, smooth_field, spread


def lung_stroma(
    depth_um: np.ndarray, flow: np.ndarray, vessel_um: np.ndarray, rng: np.random.Generator
) -> Canvas:
    """Return the canvas of septa with a denser lining, vessels with fibrous walls and pale plasma.

    Args:
        depth_um: float (h, w) on the grid, how deep in tissue, negative in airspace.
        flow: float (h, w), direction of the fibres, radians.
        vessel_um: float (h, w), distance from the nearest vessel, negative inside.
        rng: everything random is drawn from it.
    """
    shape = (depth_um.shape[0] * GRID_PX, depth_um.shape[1] * GRID_PX)
    depth = enlarge(depth_um, shape) + 0.7 * spread(periodic_noise(4.0, 4.0, number=1), shape, rng)
    fibre = fibres(enlarge(flow, shape), 1.3, rng)
    mottle = 0.03 * spread(periodic_noise(1.1, 1.1, number=2), shape, rng)
    mottle += 0.03 * enlarge(smooth_field(depth_um.shape, 45, rng), shape)
    vessel = enlarge(vessel_um, shape)

    eosin = 0.33 + 0.11 * fibre + 1.67 * mottle
    eosin += 0.16 * np.exp(-((depth / 1.6) ** 2))
    wall = np.clip(1.2 - np.abs(vessel + 5) / 6, 0, 1)
    eosin += 0.22 * wall * (1 + 0.5 * fibre)
    lumen = np.clip(-(vessel + 12) / 1.5, 0, 1)
    eosin = eosin * (1 - lumen) + 0.2 * lumen
    tissue = np.clip(depth / 0.8 + 0.5, 0, 1)
    return Canvas(
        hematoxylin=np.maximum(0.07 + mottle, 0) * tissue * (1 - lumen),
        eosin=np.maximum(eosin, 0.15) * tissue,
        red_cell=np.zeros(shape, np.float32),
    )


def brain_stroma(depth_um: np.ndarray, flow: np.ndarray, rng: np.random.Generator) -> Canvas:
    """Return the canvas of neuropil: fibrils in two directions, fine pale pores.

    Args:
        depth_um: float (h, w) on the grid, how deep in tissue, negative in vacuoles.
        flow: float (h, w), direction of most fibrils, radians.
        rng: everything random is drawn from it.
    """
    shape = (depth_um.shape[0] * GRID_PX, depth_um.shape[1] * GRID_PX)
    depth = enlarge(depth_um, shape) + 0.5 * spread(periodic_noise(3.0, 3.0, number=1), shape, rng)
    fibre = fibres(enlarge(flow, shape), 0.9, rng)
    mottle = 0.03 * spread(periodic_noise(0.9, 0.9, number=2), shape, rng)
    mottle += 0.03 * enlarge(smooth_field(depth_um.shape, 50, rng), shape)
    pores = np.clip(spread(periodic_noise(2.6, 2.6, number=3), shape, rng) - 0.9, 0, 1.2)

    crossing = np.maximum(fibre, fibres(enlarge(flow, shape) + 1.3, 0.9, rng))
    eosin = 0.38 + 0.11 * crossing + 1.67 * mottle - 0.12 * pores
    eosin += 0.07 * np.exp(-((depth / 1.5) ** 2))
    tissue = np.clip(depth / 0.9 + 0.5, 0, 1)
    return Canvas(
        hematoxylin=np.maximum(0.11 + mottle + 0.04 * fibre, 0) * tissue,
        eosin=np.maximum(eosin, 0.2) * tissue,
        red_cell=np.zeros(shape, np.float32),
    )
