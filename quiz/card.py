"""The picture of a result, to be shared."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, EDGE = 1200, 630, 72
PAPER, INK, MUTED, LINE = "#faf7fb", "#241a2e", "#5f5470", "#d9cde2"
ACCENT, GOOD, BAD = "#6b2c91", "#1b6e3c", "#a8233f"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
DOTS_PER_ROW = 24


def result_card(texts: dict[str, str], title: str, name: str, score: dict[str, Any]) -> bytes:
    """Return a PNG (1200 x 630 px) that shows a score, its interval, chance and the others.

    Args:
        texts: section "card" of the texts.
        title: the quiz's.
        name: nickname, or empty.
        score: as `quiz.play.scores` returns it.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    total = score["total"]
    draw.rectangle((0, 0, WIDTH, 14), fill=ACCENT)
    draw.text((EDGE, 62), title, INK, _font(44, bold=True))
    if name:
        draw.text((WIDTH - EDGE, 74), name, ACCENT, _font(34, bold=True), anchor="ra")
    draw.text((EDGE, 142), f"{total.hits}/{total.trials}", ACCENT, _font(150, bold=True))
    left = EDGE + draw.textlength(f"{total.hits}/{total.trials}", _font(150, bold=True)) + 44
    lines = [texts["right"].format(share=f"{100 * total.share:.0f}")]
    lines += [
        texts["tissue"].format(tissue=tissue, hits=part.hits, trials=part.trials)
        for tissue, part in list(score["tissues"].items())[:3]
    ]
    for number, line in enumerate(lines):
        size = 34 if number == 0 else 26
        draw.text(
            (left, 172 + 42 * number + 10 * (number > 0)),
            line,
            INK if number == 0 else MUTED,
            _font(size),
        )
    _draw_marks(draw, score["marks"], 352)
    _draw_scale(draw, texts, score, 500)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _draw_marks(draw: ImageDraw.ImageDraw, marks: list[bool], top: int) -> None:
    """One square per question: filled and ticked when right, empty when wrong."""
    shown = marks[: 2 * DOTS_PER_ROW]
    step = min(60.0, (WIDTH - 2 * EDGE) / min(len(shown), DOTS_PER_ROW))
    size = step - 8
    for number, right in enumerate(shown):
        x = EDGE + step * (number % DOTS_PER_ROW)
        y = top + step * (number // DOTS_PER_ROW)
        if right:
            draw.rounded_rectangle((x, y, x + size, y + size), 8, fill=GOOD)
            points = [(0.26, 0.52), (0.44, 0.7), (0.76, 0.32)]
            draw.line([(x + size * a, y + size * b) for a, b in points], "white", 5, joint="curve")
        else:
            draw.rounded_rectangle((x, y, x + size, y + size), 8, outline=BAD, width=3)


def _draw_scale(
    draw: ImageDraw.ImageDraw, texts: dict[str, str], score: dict[str, Any], y: int
) -> None:
    total = score["total"]

    def place(share: float) -> float:
        return EDGE + share * (WIDTH - 2 * EDGE)

    draw.line((place(0), y, place(1), y), LINE, 10)
    draw.line((place(total.low), y, place(total.high), y), ACCENT, 10)
    draw.line((place(0.5), y - 26, place(0.5), y + 26), INK, 4)
    if score["others_mean"] is not None:
        x = place(score["others_mean"])
        draw.polygon([(x, y - 22), (x - 13, y - 44), (x + 13, y - 44)], fill=MUTED)
    x = place(total.share)
    draw.ellipse((x - 20, y - 20, x + 20, y + 20), fill=ACCENT, outline="white", width=4)
    low, high = (f"{100 * value:.0f}" for value in (total.low, total.high))
    draw.text((EDGE, y + 42), texts["interval"].format(low=low, high=high), MUTED, _font(24))
    if score["others_mean"] is not None:
        line = texts["others"].format(share=f"{100 * score['others_mean']:.0f}", n=score["others"])
        draw.text((WIDTH - EDGE, y + 42), line, MUTED, _font(24), anchor="ra")


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)
