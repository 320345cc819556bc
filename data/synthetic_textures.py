"""Random fields that simulated tissue is drawn with: periodic textures, smooth fields, fibres."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from runtime.seeds import numpy_generator

TEXTURE_PX = 768


@lru_cache(maxsize=32)
def periodic_noise(
    length_px: float, width_px: float, angle: float = 0.0, number: int = 0
) -> np.ndarray:
    """Return Gaussian noise that continues over its own borders, mean 0, variance 1.

    Args:
        length_px: correlation length along `angle`, as the sigma of a Gaussian filter.
        width_px: correlation length across it.
        angle: in radians, from the x axis.
        number: which of many independent fields.

    Returns:
        float32 (TEXTURE_PX, TEXTURE_PX), read-only.
    """
    generator = numpy_generator(number, "periodic noise", length_px, width_px)
    frequency = np.fft.fftfreq(TEXTURE_PX)
    along = np.cos(angle) * frequency[None, :] + np.sin(angle) * frequency[:, None]
    across = -np.sin(angle) * frequency[None, :] + np.cos(angle) * frequency[:, None]
    response = np.exp(-2 * np.pi**2 * ((length_px * along) ** 2 + (width_px * across) ** 2))
    white = np.fft.fft2(generator.standard_normal((TEXTURE_PX, TEXTURE_PX)))
    noise = np.fft.ifft2(white * response).real
    noise = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    noise.setflags(write=False)
    return noise


def spread(texture: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a periodic texture laid over (H, W), turned and shifted at random."""
    turned = np.rot90(texture, rng.integers(4))
    if rng.integers(2):
        turned = turned[:, ::-1]
    return lay_out(turned, shape, rng.integers(0, TEXTURE_PX, 2))


def lay_out(texture: np.ndarray, shape: tuple[int, int], shift: np.ndarray) -> np.ndarray:
    """Return a periodic texture repeated over (H, W), shifted by (rows, columns)."""
    rolled = np.roll(texture, shift, axis=(0, 1))
    repeats = [-(-side // TEXTURE_PX) for side in shape]
    return np.tile(rolled, repeats)[: shape[0], : shape[1]]


def enlarge(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a float field interpolated to (H, W), bicubic."""
    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def smooth_field(shape: tuple[int, int], period_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field float32 (H, W), mean about 0, variance 1, of a given period."""
    coarse = [max(4, round(side / period_px) + 3) for side in shape]
    field = enlarge(rng.standard_normal(coarse), shape)
    return field / max(float(field.std()), 1e-6)


def fibres(
    orientation: np.ndarray, width_px: float, rng: np.random.Generator, directions: int = 4
) -> np.ndarray:
    """Return a fibre texture that follows a field of directions, about in [-1, 1].

    Args:
        orientation: float (H, W), direction of the fibres in radians, modulo pi.
        width_px: width of one fibre.
        directions: number of fixed directions that are blended.

    Returns:
        float32 (H, W).
    """
    shift = rng.integers(0, TEXTURE_PX, 2)
    position = np.mod(orientation / np.pi, 1) * directions
    total = np.zeros(orientation.shape, np.float32)
    for number in range(directions):
        texture = periodic_noise(7 * width_px, width_px, number * np.pi / directions, number)
        distance = np.abs(position - number)
        distance = np.minimum(distance, directions - distance)
        weight = np.maximum(0, 1 - distance)
        total += weight * lay_out(texture, orientation.shape, shift)
    return np.tanh(0.8 * total)


def level_direction(field: np.ndarray) -> np.ndarray:
    """Return the direction along the level lines of a field (H, W), float32 radians."""
    down, right = np.gradient(field)
    return np.arctan2(right, -down).astype(np.float32)


def scattered_points(
    side: float, spacing: float, rng: np.random.Generator, jitter: float = 0.33
) -> np.ndarray:
    """Return points (N, 2) over a square and two spacings around it: a hexagonal lattice, shaken.

    Args:
        side, spacing: in the same unit.
        jitter: standard deviation of the shaking, in spacings.
    """
    reach = np.arange(0, side + 4 * spacing, spacing)
    rows, columns = np.meshgrid(
        np.arange(0, side + 4 * spacing, spacing * 0.87), reach, indexing="ij"
    )
    columns = columns + (np.arange(len(rows)) % 2 * spacing / 2)[:, None]
    points = np.stack([rows.ravel(), columns.ravel()], axis=1) - 2 * spacing
    return points + rng.normal(0, jitter * spacing, points.shape)
