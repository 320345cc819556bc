"""One pixel path for every tile: same size, same encoding, and a file as long as any other."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image


class QuizTile(NamedTuple):
    """A tile and what is known about it.

    Attributes:
        source: "real", "gan" or "rna-gan".
        tissue: e.g. "lung".
        name: where it comes from, for the export.
        pixels: uint8 (H, W, 3) RGB.
    """

    source: str
    tissue: str
    name: str
    pixels: np.ndarray


def square(pixels: np.ndarray) -> np.ndarray:
    """Return the central square of a tile (H, W, 3)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def stored_png(pixels: np.ndarray) -> bytes:
    """Return uint8 pixels (H, W, 3) as a PNG without compression or metadata.

    Compressed, smooth tiles give shorter files, and the length of the answer would tell real tiles
    from generated ones. Stored as they are, equal sizes in px are equal sizes in bytes; tissue
    compresses so badly that this costs next to nothing.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def png_pixels(png: bytes) -> np.ndarray:
    """Return the pixels uint8 (H, W, 3) of `stored_png`."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)
