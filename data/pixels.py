"""Pixels (uint8 NHWC, 0 to 255) and images (float NCHW, -1 to 1): the one place that converts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from runtime.errors import UserError
from runtime.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

# zlib's run-length strategy: three times as fast as the default on H&E tiles, files as small.
PNG_STRATEGY = {"compress_level": 1, "compress_type": 3}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def pixels_to_images(pixels: Tensor) -> Tensor:
    """Return float32 images (N, 3, H, W) in [-1, 1] from uint8 pixels (N, H, W, 3)."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def images_to_pixels(images: Tensor) -> Tensor:
    """Return uint8 pixels (N, H, W, 3) from images (N, 3, H, W) in [-1, 1], clipped."""
    levels = images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255)
    return levels.byte().permute(0, 2, 3, 1).contiguous()


def resize_pixels(pixels: np.ndarray, px: int) -> np.ndarray:
    """Return one tile (H, W, 3) uint8 as (px, px, 3): area average when shrinking by a whole
    factor.

    Other factors, and enlarging, use Lanczos as Pillow implements it (antialiased when shrinking).
    """
    height, width = pixels.shape[:2]
    if height == width == px:
        return pixels
    whole = height == width and height % px == 0
    method = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((px, px), method))


def read_image(path: str | Path) -> np.ndarray:
    """Return an image file as uint8 RGB (H, W, 3).

    Raises:
        UserError: missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB pixels (H, W, 3) as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", **PNG_STRATEGY)


def image_grid(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Return tiles (N, H, W, 3) uint8 as one picture, row by row, with white gaps between."""
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    picture = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8
    )
    for number, tile in enumerate(pixels):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture
