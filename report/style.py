"""What all figures share: the look, the colours, how a figure is handed over, what is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from runtime.errors import UserError

# Okabe and Ito's colours, told apart with every kind of colour vision; yellow is left out on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
SEQUENTIAL = "cividis"
WIDTH_IN = 7.1  # a journal's two columns
DPI = 200
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,  # letters stay letters
    "savefig.facecolor": "white",
}


class MissingResult(Exception):
    """A figure cannot be drawn because a result is not there; the message says which."""


@dataclass
class Drawn:
    """One finished figure.

    Attributes:
        title: heading on the page.
        caption: what is shown, with N, seeds and network where they matter.
        figure: the drawing.
        numbers: what is drawn, as a table.
        headline: the one number to remember, for the top of the page; may be empty.
        table: a table small enough to stand below the figure on the page, or None.
    """

    title: str
    caption: str
    figure: Figure
    numbers: pd.DataFrame
    headline: str = ""
    table: pd.DataFrame | None = None


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Draw and save with the suite's look inside this context."""
    with matplotlib.rc_context(LOOK):
        yield


def panels(rows: int, columns: int, height_in: float) -> tuple[Figure, np.ndarray]:
    """Return a figure of full width and its axes, an array (rows, columns)."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture_panels(
    pictures: Sequence[Sequence[np.ndarray | None]],
    row_titles: Sequence[str],
    titles: Sequence[Sequence[str]],
) -> Figure:
    """Return pictures (H, W, 3) uint8 in rows and columns; None leaves a place empty.

    Args:
        pictures: rows of pictures, equally long.
        row_titles: text at the left of each row.
        titles: text above each picture.
    """
    columns = len(pictures[0])
    width = (WIDTH_IN - 0.3) / columns
    heights = [
        max(width * one.shape[0] / one.shape[1] for one in row if one is not None) + 0.25
        for row in pictures
    ]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
    axes = figure.subplots(
        len(pictures), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for row, row_axes in enumerate(axes):
        for column, axis in enumerate(row_axes):
            bare(axis)
            picture = pictures[row][column]
            if picture is not None:
                axis.imshow(picture, interpolation="antialiased", interpolation_stage="rgba")
                axis.set_title(titles[row][column], fontsize=7.5, pad=2)
        row_axes[0].set_ylabel(row_titles[row])
    return figure


def bare(axis: Axes) -> None:
    """Take ticks and frame away from an axis that holds a picture."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return a CSV table.

    Raises:
        UserError: it cannot be read, is empty, or lacks one of `columns`.
    """
    try:
        frame = pd.read_csv(path)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    lacking = [column for column in columns if column not in frame]
    if lacking:
        raise UserError(f"{path}: no column {lacking[0]} (found: {', '.join(frame.columns[:8])})")
    if frame.empty:
        raise UserError(f"{path}: no rows")
    return frame


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as uint8 (H, W, 3).

    Raises:
        UserError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


def crop_grid(pixels: np.ndarray, tiles: int) -> np.ndarray:
    """Return the first rows and columns of a grid of tiles, at most `tiles` of each.

    Args:
        pixels: (H, W, 3), tiles with white lines between, as the epoch grids have them.
    """
    ends = []
    for axis in (0, 1):
        white = (pixels == 255).all(axis=(1 - axis, 2))
        starts = np.flatnonzero(white[1:] & ~white[:-1]) + 1
        ends.append(int(starts[tiles - 1]) if len(starts) >= tiles else pixels.shape[axis])
    return pixels[: ends[0], : ends[1]]


def first_folder(results: Path, *patterns: str) -> Path | None:
    """Return the folder of the first file that matches one of the patterns, or None."""
    for pattern in patterns:
        for path in sorted(results.glob(pattern)):
            return path.parent
    return None
