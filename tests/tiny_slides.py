"""Small slides for tests: a stained disc with round nuclei on light glass, in Aperio layout."""

from __future__ import annotations

import struct
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


def write_dicom(
    folder: Path,
    pixels: np.ndarray,
    mpp: float = 0.25,
    series: str = "1.2.3.2",
    prefix: str = "level",
) -> Path:
    """Write uint8 RGB pixels as a DICOM whole-slide series of two levels, a file each.

    Source: DICOM PS3.3, A.32.8 (VL Whole Slide Microscopy Image), PS3.10 for the file format;
        uncompressed, explicit VR, tiles in full raster order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, factor in enumerate((1, 4)):
        level = np.asarray(Image.fromarray(pixels).reduce(factor))
        content = _dicom_level(level, mpp * factor, number, series)
        (folder / f"{prefix}{number}.dcm").write_bytes(content)
    return folder


def _dicom_level(pixels: np.ndarray, mpp: float, number: int, series: str) -> bytes:
    height, width = pixels.shape[:2]
    side = 64
    tiles = pixels.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2)
    wsi, explicit_little = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.1"
    instance = f"{series}.4.{number + 1}"
    kind = (
        "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if not number else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
    )
    spacing = _element(0x0028, 0x0030, "DS", f"{mpp / 1000}\\{mpp / 1000}")
    shared = _sequence(0x0028, 0x9110, spacing)
    meta = b"".join(
        [
            _element(0x0002, 0x0001, "OB", b"\0\1"),
            _element(0x0002, 0x0002, "UI", wsi),
            _element(0x0002, 0x0003, "UI", instance),
            _element(0x0002, 0x0010, "UI", explicit_little),
        ]
    )
    content = [
        _element(0x0008, 0x0008, "CS", kind),
        _element(0x0008, 0x0016, "UI", wsi),
        _element(0x0008, 0x0018, "UI", instance),
        _element(0x0008, 0x0060, "CS", "SM"),
        _element(0x0020, 0x000D, "UI", "1.2.3.1"),
        _element(0x0020, 0x000E, "UI", series),
        _element(0x0020, 0x0013, "IS", str(number + 1)),
        _element(0x0020, 0x9311, "CS", "TILED_FULL"),
        _element(0x0028, 0x0002, "US", 3),
        _element(0x0028, 0x0004, "CS", "RGB"),
        _element(0x0028, 0x0006, "US", 0),
        _element(0x0028, 0x0008, "IS", str(tiles.shape[0] * tiles.shape[1])),
        _element(0x0028, 0x0010, "US", side),
        _element(0x0028, 0x0011, "US", side),
        _element(0x0028, 0x0100, "US", 8),
        _element(0x0028, 0x0101, "US", 8),
        _element(0x0028, 0x0102, "US", 7),
        _element(0x0028, 0x0103, "US", 0),
        _element(0x0048, 0x0006, "UL", width),
        _element(0x0048, 0x0007, "UL", height),
        _element(0x0048, 0x0303, "UL", 1),
        _sequence(0x5200, 0x9229, shared),
        _element(0x7FE0, 0x0010, "OB", tiles.tobytes()),
    ]
    length = _element(0x0002, 0x0000, "UL", len(meta))
    return bytes(128) + b"DICM" + length + meta + b"".join(content)


def _element(group: int, element: int, kind: str, value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    elif isinstance(value, str):
        padding = b"\0" if kind == "UI" else b" "
        value = value.encode() + padding * (len(value) % 2)
    head = struct.pack("<HH2s", group, element, kind.encode())
    long = kind in ("OB", "SQ")
    return head + struct.pack("<HI" if long else "<H", *((0,) if long else ()), len(value)) + value


def _sequence(group: int, element: int, item: bytes) -> bytes:
    return _element(group, element, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)
