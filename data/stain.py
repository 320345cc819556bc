"""Stain normalisation: the colours of a slide moved to those of a reference.

Fitted once per slide, so that neighbouring tiles stay alike; applied to each tile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.pixels import IMAGE_SUFFIXES, read_image
from runtime.errors import UserError
from runtime.files import read_json

METHODS = ("none", "macenko", "reinhard")
DEFAULT_REFERENCE = Path(__file__).resolve().parent.parent / "configs" / "stain_reference.json"

# Macenko et al. 2009: light that comes in, least optical density of a stained pixel, and the
# percentiles of angle and concentration taken for the extremes.
LIGHT = 240.0
STAINED_DENSITY = 0.15
ANGLE_PERCENTILES = (1, 99)
FULL_PERCENTILE = 99
FEWEST_PIXELS = 1000
# Reinhard et al. 2001: RGB to cone responses, and the decorrelated axes of their logarithm.
RGB_TO_LMS = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]], np.float32
)
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]).astype(np.float32) @ np.array(
    [[1, 1, 1], [1, 1, -2], [1, -1, 0]], np.float32
)


class StainReference(BaseModel):
    """The colours of a well-stained slide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="the pixels it was fitted to")
    macenko_stains: list[list[float]] = Field(
        min_length=2, max_length=2,
        description="haematoxylin and eosin: optical density in R, G, B, unit length",
    )  # fmt: skip
    macenko_maxima: list[float] = Field(
        min_length=2, max_length=2, description="99th percentile of either concentration"
    )
    reinhard_mean: list[float] = Field(min_length=3, max_length=3, description="of l, alpha, beta")
    reinhard_std: list[float] = Field(min_length=3, max_length=3, description="of l, alpha, beta")


def read_reference(path: str | Path = DEFAULT_REFERENCE) -> StainReference:
    """Return the stain reference of a JSON file, or fitted to an image of stained tissue.

    Raises:
        UserError: missing, neither of the two, or an image with too little stain.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        try:
            return fit_reference(read_image(path), path.name)
        except ValueError as error:
            raise UserError(f"{path}: no stain reference ({error})") from error
    try:
        return StainReference.model_validate(read_json(path))
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(map(str, found["loc"]))
        raise UserError(f"{path}: not a stain reference: {key}: {found['msg']}") from error


def fit_reference(pixels: np.ndarray, source: str) -> StainReference:
    """Return the stain reference of uint8 RGB pixels (..., 3); ValueError with too little stain."""
    stains, maxima = macenko_stains(pixels)
    mean, std = reinhard_statistics(pixels)
    values = (part.astype(float).round(5).tolist() for part in (stains, maxima, mean, std))
    names = ("macenko_stains", "macenko_maxima", "reinhard_mean", "reinhard_std")
    return StainReference(source=source, **dict(zip(names, values, strict=True)))


def fit_normaliser(
    method: str, pixels: np.ndarray, reference: StainReference
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that moves uint8 RGB pixels (H, W, 3) of a slide to the reference.

    Args:
        method: "macenko" or "reinhard".
        pixels: uint8 RGB (..., 3) of the slide's tissue.

    Raises:
        ValueError: too little stain in `pixels`.
    """
    if method == "reinhard":
        return _reinhard(*reinhard_statistics(pixels), reference)
    stains, maxima = macenko_stains(pixels)
    scale = np.array(reference.macenko_maxima) / maxima
    # Concentrations by least squares, scaled, laid on the reference's stains: one 3 x 3 matrix.
    matrix = np.linalg.pinv(stains) * scale @ np.array(reference.macenko_stains)
    return _Macenko(matrix.astype(np.float32))


def macenko_stains(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the stain vectors (2, 3), haematoxylin first, and maximal concentrations (2,).

    Args:
        pixels: uint8 RGB (..., 3).

    Raises:
        ValueError: fewer than 1000 stained pixels, or a single stain.

    Source: Macenko et al. 2009, "A method for normalizing histology slides", section 2.
    """
    density = _density(pixels.reshape(-1, 3))
    stained = density[(density > STAINED_DENSITY).all(axis=1)].astype(np.float64)
    if len(stained) < FEWEST_PIXELS:
        raise ValueError(f"{len(stained)} stained pixels; {FEWEST_PIXELS} are needed")
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1, 1)  # into the positive octant, as densities are
    across, along = stained @ plane[:, 1], stained @ plane[:, 0]
    angles = np.percentile(np.arctan2(across, along), ANGLE_PERCENTILES)
    stains = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    # Haematoxylin absorbs more red than eosin does.
    stains = stains[np.argsort(-stains[:, 0])]
    concentrations = stained @ np.linalg.pinv(stains)
    maxima = np.percentile(concentrations, FULL_PERCENTILE, axis=0)
    if np.linalg.cond(stains) > 1e3 or (maxima <= 0).any():
        raise ValueError("a single stain; two are needed")
    return stains, maxima


def reinhard_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (3,) and standard deviation (3,) of l, alpha, beta of the stained pixels.

    Raises:
        ValueError: fewer than 1000 stained pixels, or all of one colour.

    Source: Reinhard et al. 2001, "Color transfer between images", equations 4 to 9.
    """
    flat = pixels.reshape(-1, 3)
    stained = flat[(_density(flat) > STAINED_DENSITY).all(axis=1)]
    if len(stained) < FEWEST_PIXELS:
        raise ValueError(f"{len(stained)} stained pixels; {FEWEST_PIXELS} are needed")
    values = _lab(stained).astype(np.float64)
    std = values.std(axis=0)
    if (std < 1e-6).any():
        raise ValueError("all of one colour")
    return values.mean(axis=0), std


class _Macenko:
    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        density = _density(pixels) @ self._matrix
        return np.clip(LIGHT * np.exp(-density) - 0.5, 0, 255).astype(np.uint8)


def _reinhard(
    mean: np.ndarray, std: np.ndarray, reference: StainReference
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the transfer of mean and deviation, which leaves glass as it is.

    Source: Reinhard et al. 2001, equations 10 and 11; the exception is ours.
    """
    scale = (np.array(reference.reinhard_std) / std).astype(np.float32)
    shift = (np.array(reference.reinhard_mean) - mean * scale).astype(np.float32)
    lab_to_log, lms_to_rgb = np.linalg.inv(LMS_TO_LAB).T, np.linalg.inv(RGB_TO_LMS).T

    def normalise(pixels: np.ndarray) -> np.ndarray:
        moved = _lab(pixels) * scale + shift
        rgb = np.power(np.float32(10), moved @ lab_to_log) @ lms_to_rgb
        # Glass has no stain to move: its colour would turn into that of none.
        share = np.clip(_density(pixels).mean(axis=-1, keepdims=True) / STAINED_DENSITY, 0, 1)
        return np.clip(pixels + share * (rgb - 1 - pixels) + 0.5, 0, 255).astype(np.uint8)

    return normalise


# Optical density of the 256 levels; one is added, as level 0 has none.
_DENSITIES = -np.log((np.arange(256, dtype=np.float32) + 1) / LIGHT).astype(np.float32)


def _density(pixels: np.ndarray) -> np.ndarray:
    """Return optical density float32 (..., 3) of uint8 pixels (..., 3)."""
    return _DENSITIES[pixels]


def _lab(pixels: np.ndarray) -> np.ndarray:
    """Return l, alpha, beta float32 (..., 3) of uint8 RGB pixels (..., 3)."""
    responses = (pixels.astype(np.float32) + 1) @ RGB_TO_LMS.T
    return np.log10(responses) @ LMS_TO_LAB.T
