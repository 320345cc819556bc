"""Tissue masks as files: images and GeoJSON of QuPath, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from PIL import Image

from data.pixels import IMAGE_SUFFIXES, read_image
from data.slide_files import SlideError
from data.tiles import slide_stem
from runtime.errors import UserError
from runtime.files import write_text

GEOJSON_SUFFIX = ".geojson"
TISSUE_CLASS = {"name": "Tissue", "color": [0, 140, 60]}
LARGEST_ASPECT_ERROR = 0.02


def find_mask(path: str | Path, slide: str) -> Path:
    """Return the mask file of a slide: `path` itself, or `<slide>.*` or `<stem>.*` in that folder.

    Raises:
        SlideError: the folder holds no mask of that slide.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in dict.fromkeys((slide, slide_stem(slide))):
        for suffix in (GEOJSON_SUFFIX, *IMAGE_SUFFIXES):
            if (mask := path / f"{name}{suffix}").is_file():
                return mask
    raise SlideError(f"{slide}: no mask in {path} (looked for {slide_stem(slide)}.png, .geojson)")


def read_mask(path: str | Path, slide_size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return a mask file as bool (height, width) = `shape` over the whole slide.

    An image is tissue where it is not black; of GeoJSON all polygons are, holes left out.

    Args:
        slide_size: width and height of the slide's level 0, px, in which GeoJSON is given.

    Raises:
        SlideError: unreadable, or of another shape than the slide.
    """
    path = Path(path)
    if path.suffix.lower() == GEOJSON_SUFFIX:
        return _draw_polygons(path, slide_size, shape)
    try:
        mask = read_image(path).any(axis=2)
    except UserError as error:
        raise SlideError(str(error)) from error
    height, width = mask.shape
    aspect = width / height * slide_size[1] / slide_size[0]
    # Half a pixel either way is rounding.
    if abs(aspect - 1) > LARGEST_ASPECT_ERROR + 1 / min(height, width):
        raise SlideError(
            f"{path}: {width} x {height} px, not the shape of the slide"
            f" ({slide_size[0]} x {slide_size[1]} px)"
        )
    resized = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def write_geojson(path: str | Path, mask: np.ndarray, slide_size: tuple[int, int]) -> None:
    """Write a bool mask (H, W) as GeoJSON annotations that QuPath opens, whole or not at all.

    One feature per region, holes as inner rings, in pixels of the slide's level 0.

    Args:
        slide_size: width and height of level 0, px.

    Source: RFC 7946, section 3.1.6; QuPath's GeoJSON export (objectType, classification).
    """
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": TISSUE_CLASS},
        }
        for rings in _polygons(mask, slide_size)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    write_text(path, json.dumps(collection, separators=(",", ":")) + "\n")


def _polygons(mask: np.ndarray, slide_size: tuple[int, int]) -> Iterator[list[list[list[float]]]]:
    """Yield the rings of each region: the outer one, then its holes; closed, in level-0 pixels."""
    step = np.array(slide_size) / mask.shape[::-1]
    padded = np.pad(mask.astype(np.float32), 1)
    contours = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    regions, offsets = contours.filled(0.5, 2.0)
    for points, ends in zip(regions, offsets, strict=True):
        # A pixel's value stands at its centre; the padding moves all by one.
        placed = np.clip((points - 0.5) * step, 0, slide_size).round(1)
        yield [placed[start:end].tolist() for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _draw_polygons(path: Path, slide_size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    step = np.array(shape[::-1]) / slide_size
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for rings in _rings(content):
            _fill(mask, [np.asarray(ring, np.float64)[:, :2] * step for ring in rings])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SlideError(f"{path}: not GeoJSON with polygons ({error})") from error
    return mask


def _fill(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set the pixels whose centres lie inside a polygon, by the even-odd rule over all its rings.

    Args:
        rings: (N, 2) x and y of the corners, in pixels from the mask's upper left corner.
    """
    height, width = mask.shape
    start = np.concatenate([ring[:-1] for ring in rings])
    end = np.concatenate([ring[1:] for ring in rings])
    # The rows whose centre line an edge crosses; a horizontal edge crosses none.
    low, high = np.sort(np.stack([start[:, 1], end[:, 1]]), axis=0)
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(high - 0.5), 0, height).astype(int)
    if not (count := last - first).any():
        return
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x, y), (to_x, to_y) = start[edge].T, end[edge].T
    crossing = x + (row + 0.5 - y) / (to_y - y) * (to_x - x)
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
    top, left = row.min(), column.min()
    box = (slice(top, row.max() + 1), slice(left, column.max()))
    changes = np.zeros((row.max() + 1 - top, column.max() + 1 - left), np.int32)
    np.add.at(changes, (row - top, column - left), 1)
    mask[box] |= (changes.cumsum(axis=1) % 2 == 1)[:, :-1]


def _rings(content: Any) -> Iterator[list]:
    """Yield the rings of every polygon of a GeoJSON object."""
    if isinstance(content, list):
        for part in content:
            yield from _rings(part)
    elif content["type"] in ("FeatureCollection", "GeometryCollection"):
        yield from _rings(content.get("features") or content.get("geometries") or [])
    elif content["type"] == "Feature":
        yield from _rings(content["geometry"])
    elif content["type"] == "Polygon":
        yield content["coordinates"]
    elif content["type"] == "MultiPolygon":
        yield from content["coordinates"]
    else:
        raise ValueError(f"a {content['type']}; polygons are needed")
