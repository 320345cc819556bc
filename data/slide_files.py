"""Slide files: finding them in a folder, and opening whatever OpenSlide or Pillow can read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
from PIL import Image, UnidentifiedImageError

from data.tiles import PLAIN_SUFFIXES, SLIDE_SUFFIXES
from runtime.errors import UserError
from runtime.files import require_file, require_folder

CACHE_BYTES = 64 << 20
# A plain image is decoded whole, 4 bytes a pixel; 20,000 x 20,000 px take 1.6 GB.
LARGEST_PLAIN_PX = 400_000_000
DICOM_SUFFIX, DICOM_SERIES = ".dcm", "dicom.SeriesInstanceUID"
# DICOM PS3.10, section 7.1: after 128 bytes.
DICOM_MAGIC, DICOM_MAGIC_AT = b"DICM", 128


class SlideError(UserError):
    """A slide that cannot be used; the message names it and says why."""


def list_slides(slide_path: str | Path, recursive: bool = False) -> list[Path]:
    """Return the slides of a folder by name, or the one slide given.

    A slide is a file with a known suffix, one whose content OpenSlide recognises, or a DICOM
    series: its folder where that holds no other series, else its first file.

    Args:
        recursive: look in the folders below too, as downloads of one folder per slide need.

    Raises:
        UserError: no such folder, no slide in it, or two of the same name.
    """
    path = Path(slide_path)
    if path.is_file():
        return [path]
    require_folder(path, "slide folder")
    try:
        slides = sorted(_slides_below(path, recursive), key=lambda slide: slide.name)
        series = _dicom_series(path)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
    if series and not slides:
        return series
    if series == [path]:
        series = [next(_dicom_files(path))]
    slides = sorted([*slides, *series], key=lambda slide: slide.name)
    if not slides:
        suffixes = " ".join((*SLIDE_SUFFIXES, *PLAIN_SUFFIXES))
        raise UserError(f"{path}: no slides in it (looked for {suffixes})")
    for one, other in zip(slides, slides[1:], strict=False):
        if one.name == other.name:
            raise UserError(f"{one} and {other}: two slides of one name; tile them apart")
    return slides


def read_slide_table(path: str | Path) -> dict[str, float]:
    """Return the um/px of level 0 by slide name, of a CSV with columns `slide` and `mpp`.

    Rows with an empty `mpp` are passed over, other columns too.

    Raises:
        UserError: missing or not such a table, a slide twice, a resolution that is no number > 0.
    """
    path = require_file(path, "slide table")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    for column in ("slide", "mpp"):
        if column not in frame:
            found = ", ".join(frame.columns[:8])
            raise UserError(f"{path}: no column {column} (found: {found})")
    table: dict[str, float] = {}
    for slide, text in zip(frame["slide"], frame["mpp"], strict=True):
        if slide in table:
            raise UserError(f"{path}: slide {slide} appears more than once")
        if not text.strip():
            continue
        try:
            table[slide] = float(text)
        except ValueError:
            table[slide] = float("nan")
        if not 0 < table[slide] < float("inf"):
            raise UserError(f"{path}: slide {slide}: mpp {text!r} is not a number above 0")
    return table


def open_slide(path: Path) -> tuple[openslide.AbstractSlide, str]:
    """Return an opened slide and the name of its format.

    Raises:
        SlideError: it cannot be read, as a slide or as a plain image.
    """
    try:
        if not path.exists():
            raise SlideError(f"{path}: not there, or a link that leads nowhere")
        if not (path.is_file() or path.is_dir()):
            raise SlideError(f"{path}: neither a file nor a folder of DICOM files")
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from error
    return _open_dicom(path) if path.is_dir() else _open_file(path)


def _slides_below(path: Path, recursive: bool) -> Iterator[Path]:
    """Yield the slides in a folder, DICOM files directly in it left out."""
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    parts = _parts_of_hamamatsu(entries)
    for entry in entries:
        if entry.is_dir():
            yield from _dicom_series(entry)
            if recursive:
                yield from _slides_below(entry, recursive)
        elif entry.suffix.lower() in PLAIN_SUFFIXES:
            if entry.name not in parts:
                yield entry
        elif (entry.suffix.lower() in SLIDE_SUFFIXES or _is_slide(entry)) and not _is_dicom(entry):
            yield entry


def _parts_of_hamamatsu(entries: list[Path]) -> set[str]:
    """Return the names of image files that `.vms` and `.vmu` files give as theirs."""
    parts = set()
    for entry in entries:
        if entry.suffix.lower() in (".vms", ".vmu") and entry.is_file():
            with contextlib.suppress(OSError):
                lines = entry.read_text(encoding="latin-1").splitlines()
                parts |= {line.partition("=")[2].strip() for line in lines}
    return parts


def _dicom_series(folder: Path) -> list[Path]:
    """Return the folder where its DICOM files are of one series, else one file of each series."""
    files, series = 0, {}
    for path in _dicom_files(folder):
        files += 1
        with contextlib.suppress(openslide.OpenSlideError), openslide.OpenSlide(path) as slide:
            series.setdefault(slide.properties.get(DICOM_SERIES, ""), path)
    if len(series) > 1:
        return list(series.values())
    return [folder] if files else []


def _is_slide(path: Path) -> bool:
    with contextlib.suppress(openslide.OpenSlideError, OSError):
        return path.is_file() and openslide.OpenSlide.detect_format(path) is not None
    return False


def _dicom_files(folder: Path) -> Iterator[Path]:
    return filter(_is_dicom, sorted(folder.iterdir()))


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() not in ("", DICOM_SUFFIX) or not path.is_file():
        return False
    with contextlib.suppress(OSError), open(path, "rb") as handle:
        handle.seek(DICOM_MAGIC_AT)
        return handle.read(len(DICOM_MAGIC)) == DICOM_MAGIC
    return False


def _open_dicom(folder: Path) -> tuple[openslide.AbstractSlide, str]:
    """Return the slide of a DICOM series, which any file of its pyramid opens."""
    reason = "no DICOM file in it"
    for path in _dicom_files(folder):
        try:
            return _configured(openslide.OpenSlide(path))
        except (openslide.OpenSlideError, OSError) as error:
            reason = str(error)
    raise SlideError(f"{folder}: not a slide that OpenSlide can read ({reason})")


def _open_file(path: Path) -> tuple[openslide.AbstractSlide, str]:
    try:
        return _configured(openslide.OpenSlide(path))
    except openslide.OpenSlideUnsupportedFormatError:
        return _open_plain(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"{path}: not a slide that OpenSlide can read ({error})") from error


def _configured(slide: openslide.OpenSlide) -> tuple[openslide.OpenSlide, str]:
    slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    return slide, slide.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")


def _open_plain(path: Path) -> tuple[openslide.ImageSlide, str]:
    """Return an image without a pyramid as a slide of one level, 8 bits a channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is raised
            with _images_up_to(LARGEST_PLAIN_PX), Image.open(path) as image:
                return openslide.ImageSlide(_eight_bit(image)), f"plain {image.format}"
    except Image.DecompressionBombError as error:
        raise SlideError(
            f"{path}: a plain image of more than {LARGEST_PLAIN_PX // 10**6} million pixels; make"
            " it a tiled TIFF (vips tiffsave IN OUT.tif --tile --pyramid)"
        ) from error
    except UnidentifiedImageError as error:
        raise SlideError(
            f"{path}: not a slide that OpenSlide can read ({path.stat().st_size} bytes of no known"
            " format)"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise SlideError(f"{path}: not a slide that OpenSlide can read ({error})") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return an image as RGBA; of 16 bits and of floats the full range becomes 0 to 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGBA")
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = max(float(values.max()), 1e-9)
        top = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
        return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8)).convert("RGBA")
    return image.convert("RGBA")


@contextlib.contextmanager
def _images_up_to(pixels: int) -> Iterator[None]:
    """Let Pillow open images of so many pixels meanwhile; it raises at twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
