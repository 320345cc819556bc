"""One picture of all slides of a tiling run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from runtime.files import atomic_path

# A sheet stays below 65,535 px, the most that JPEG can hold, up to a million slides.
LARGEST_SIDE_PX = 8192
THUMBNAIL_PX = (48, 288)
CAPTION_PX = 30
GAP_PX = 6
COLOURS = {"done": (40, 40, 40), "empty": (176, 108, 0), "failed": (196, 32, 32)}


class SlideEntry(NamedTuple):
    """A slide on the sheet: its name, status, text below its name, and overview (may be absent)."""

    name: str
    status: str
    text: str
    overview: Path


def write_contact_sheet(path: str | Path, slides: Sequence[SlideEntry]) -> None:
    """Write thumbnails of all slides with name and status below, whole or not at all.

    Args:
        slides: in the order wanted, 1 or more. One without an overview is a box with its text.
    """
    columns = math.ceil(math.sqrt(len(slides) * 1.4))
    side = min(max(LARGEST_SIDE_PX // columns - GAP_PX, THUMBNAIL_PX[0]), THUMBNAIL_PX[1])
    rows = -(-len(slides) // columns)
    across, down = side + GAP_PX, side + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (columns * across + GAP_PX, rows * down + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for number, slide in enumerate(slides):
        left = GAP_PX + number % columns * across
        top = GAP_PX + number // columns * down
        colour = COLOURS.get(slide.status, COLOURS["failed"])
        picture = _thumbnail(slide.overview, side)
        if picture is None:
            box = (left, top, left + side - 1, top + side - 1)
            draw.rectangle(box, fill=(244, 244, 244), outline=colour)
            _write(draw, font, left + 6, top + 6, side - 12, slide.text, colour, lines=side // 14)
        else:
            place = (left + (side - picture.width) // 2, top + (side - picture.height) // 2)
            sheet.paste(picture, place)
        _write(draw, font, left, top + side + 1, side, slide.name, colour, lines=1)
        words = slide.status if picture is None else f"{slide.status}: {slide.text}"
        _write(draw, font, left, top + side + 15, side, words, colour, lines=1)
    with atomic_path(path) as temporary:
        sheet.save(temporary, quality=88)


def _thumbnail(path: Path, side: int) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (side, side))
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    left: int,
    top: int,
    width: int,
    text: str,
    colour: tuple[int, int, int],
    lines: int,
) -> None:
    """Write text that is broken at `width` and cut after so many lines."""
    for line in range(lines):
        end = len(text)
        while end > 1 and draw.textlength(text[:end], font=font) > width:
            end -= 1
        piece, text = text[:end], text[end:]
        if text and line == lines - 1:
            piece = piece[:-2] + "..." if len(piece) > 4 else piece
        draw.text((left, top + 13 * line), piece, fill=colour, font=font)
        if not text:
            return
