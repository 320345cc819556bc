"""Aperio SVS files: a tiled JPEG pyramid with a thumbnail, in the layout that OpenSlide reads.

The TIFF structure is written here because the tiles are encoded with Pillow: the TIFF libraries for
Python ask for a further codec package before they pass JPEG data through.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from runtime.files import atomic_path

TILE_PX = 256
LEVEL_FACTOR = 4
THUMBNAIL_PX = 768
VERSION = "Aperio Image Library v11.2.1"

# TIFF 6.0, section 2 and 22: field types and tags.
ASCII, SHORT, LONG = 2, 3, 4
TYPE_CODES = {SHORT: "H", LONG: "I"}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUBSAMPLING = 322, 323, 324, 325, 530
JPEG, YCBCR, INTERLEAVED = 7, 6, 1


def write_aperio(
    path: str | Path,
    pixels: np.ndarray,
    mpp: float,
    magnification: int,
    quality: int = 90,
    levels: int = 2,
) -> None:
    """Write one slide as an Aperio SVS pyramid, whole or not at all; equal input gives equal bytes.

    The file holds, in this order: level 0, the thumbnail, and levels shrunk by 4, 16, ...

    Args:
        path: file to write, named `*.svs`.
        pixels: uint8 RGB (H, W, 3) at the scanning resolution.
        mpp: um per pixel of level 0.
        magnification: of the objective, e.g. 20 or 40 (the tag AppMag).
        quality: JPEG quality, 1 to 95; colours are kept at full resolution (4:4:4).
        levels: number of levels, 1 or more.

    Source: OpenSlide's description of the Aperio format; TIFF 6.0 and its JPEG technical note 2.
    """
    picture = Image.fromarray(pixels)
    head = f"{VERSION}\n{picture.width}x{picture.height}"
    tiling = f"({TILE_PX}x{TILE_PX})"
    facts = f"AppMag = {magnification}|MPP = {mpp:.4f}|Filename = {Path(path).stem}"
    coding = f"JPEG/RGB Q={quality}"
    thumbnail = _thumbnail(picture)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link = 4  # where the offset of the next directory belongs
        link = _write_tiled(file, link, picture, quality, f"{head} {tiling} {coding}|{facts}")
        size = f"{thumbnail.width}x{thumbnail.height}"
        link = _write_thumbnail(file, link, thumbnail, quality, f"{head} -> {size} - |{facts}")
        for level in range(1, levels):
            smaller = picture.reduce(LEVEL_FACTOR**level)
            size = f"{smaller.width}x{smaller.height}"
            link = _write_tiled(file, link, smaller, quality, f"{head} {tiling} -> {size} {coding}")


def _write_tiled(
    file: BinaryIO, link: int, picture: Image.Image, quality: int, description: str
) -> int:
    blocks = _encoded_tiles(picture, quality)
    offsets, sizes = _append(file, blocks)
    placement = {
        TILE_WIDTH: (SHORT, [TILE_PX]),
        TILE_HEIGHT: (SHORT, [TILE_PX]),
        TILE_OFFSETS: (LONG, offsets),
        TILE_BYTES: (LONG, sizes),
    }
    return _write_directory(file, link, picture, description, placement)


def _write_thumbnail(
    file: BinaryIO, link: int, picture: Image.Image, quality: int, description: str
) -> int:
    offsets, sizes = _append(file, iter([_jpeg(picture, quality)]))
    placement = {
        STRIP_OFFSETS: (LONG, offsets),
        STRIP_ROWS: (LONG, [picture.height]),
        STRIP_BYTES: (LONG, sizes),
    }
    return _write_directory(file, link, picture, description, placement)


def _append(file: BinaryIO, blocks: Iterator[bytes]) -> tuple[list[int], list[int]]:
    offsets, sizes = [], []
    for block in blocks:
        offsets.append(file.tell())
        sizes.append(file.write(block))
        file.write(b"\0" * (len(block) % 2))
    return offsets, sizes


def _write_directory(
    file: BinaryIO, link: int, picture: Image.Image, description: str, placement: dict
) -> int:
    """Append an image file directory, point `link` at it, return the position of its own link."""
    tags = {
        WIDTH: (LONG, [picture.width]),
        HEIGHT: (LONG, [picture.height]),
        BITS: (SHORT, [8, 8, 8]),
        COMPRESSION: (SHORT, [JPEG]),
        PHOTOMETRIC: (SHORT, [YCBCR]),  # each tile is an ordinary JPEG file, hence YCbCr inside
        DESCRIPTION: (ASCII, description.encode("ascii") + b"\0"),
        SAMPLES: (SHORT, [3]),
        PLANAR: (SHORT, [INTERLEAVED]),
        SUBSAMPLING: (SHORT, [1, 1]),
        **placement,
    }
    entries = []
    for tag, (kind, values) in sorted(tags.items()):
        packed = (
            values if kind == ASCII else struct.pack(f"<{len(values)}{TYPE_CODES[kind]}", *values)
        )
        if len(packed) > 4:
            (offset,), _ = _append(file, iter([packed]))
            packed = struct.pack("<I", offset)
        entries.append(struct.pack("<HHI4s", tag, kind, len(values), packed))
    start = file.tell()
    file.write(struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0))
    end = file.tell()
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(end)
    return end - 4


def _encoded_tiles(picture: Image.Image, quality: int) -> Iterator[bytes]:
    """Yield the tiles of a picture row by row as JPEG; what sticks out repeats the border."""
    for top in range(0, picture.height, TILE_PX):
        for left in range(0, picture.width, TILE_PX):
            right = min(left + TILE_PX, picture.width)
            bottom = min(top + TILE_PX, picture.height)
            tile = np.asarray(picture.crop((left, top, right, bottom)))
            missing = [(0, TILE_PX - side) for side in tile.shape[:2]]
            yield _jpeg(Image.fromarray(np.pad(tile, [*missing, (0, 0)], mode="edge")), quality)


def _thumbnail(picture: Image.Image) -> Image.Image:
    factor = THUMBNAIL_PX / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize(tuple(size), Image.Resampling.BOX)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=quality, subsampling=0)
    return encoded.getvalue()
