"""Small slides for tests: a stained disc with round nuclei on light glass, in Aperio layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

BACKGROUND = (243, 243, 243)
STROMA = (214, 140, 190)
NUCLEUS = (90, 70, 140)
NUCLEUS_DIAMETER_UM = 8.0


def tissue_picture(side_um: float = 512.0, mpp: float = 0.25, seed: int = 1) -> np.ndarray:
    """Return uint8 RGB (H, W, 3): tissue in the middle, nuclei on a jittered grid."""
    px = round(side_um / mpp)
    rows, columns = np.mgrid[0:px, 0:px] * mpp
    distance = np.hypot(rows - side_um / 2, columns - side_um / 2)
    rng = np.random.default_rng(seed)
    picture = np.full((px, px, 3), BACKGROUND, float)
    picture[distance < 0.4 * side_um] = STROMA
    for y in np.arange(0, side_um, 16.0):
        for x in np.arange(0, side_um, 16.0):
            center_y, center_x = np.array((y, x)) + rng.uniform(4, 12, 2)
            if np.hypot(center_y - side_um / 2, center_x - side_um / 2) > 0.38 * side_um:
                continue
            half = NUCLEUS_DIAMETER_UM / 2
            box = tuple(
                slice(int((center - half) / mpp), int((center + half) / mpp) + 2)
                for center in (center_y, center_x)
            )
            inside = np.hypot(rows[box] - center_y, columns[box] - center_x) < half
            picture[box][inside] = NUCLEUS
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def write_slide(
    path: Path,
    pixels: np.ndarray,
    mpp: float | None = 0.25,
    power: int | None = None,
    levels: int = 2,
) -> Path:
    """Write uint8 RGB pixels as a lossless Aperio-like pyramid, levels 4 times smaller each.

    `mpp` and `power` are left out of the description when None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = [f"MPP = {mpp}"] * (mpp is not None) + [f"AppMag = {power}"] * (power is not None)
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            picture = np.asarray(Image.fromarray(pixels).reduce(4**level))
            height, width = picture.shape[:2]
            size = f"Aperio Image Library v11.2.1\r\n{width}x{height} (64x64)"
            tiff.write(
                picture,
                tile=(64, 64),
                photometric="rgb",
                description="|".join([size, *facts]),
                metadata=None,
            )
            if level == 0:
                # Aperio keeps a striped thumbnail as the second image.
                tiff.write(
                    np.asarray(Image.fromarray(pixels).reduce(8)),
                    photometric="rgb",
                    description="Aperio Image Library v11.2.1",
                    metadata=None,
                )
    return path
