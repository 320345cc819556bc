"""Text tables in blocks of rows: CSV or TSV with a header line, plain or compressed."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from tqdm import tqdm

from runtime.errors import UserError
from runtime.files import require_file

# By content, because browsers unpack downloads and leave the suffix.
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# Cells and rows parsed at a time: tens of megabytes, whatever the table's form.
BLOCK_CELLS, BLOCK_ROWS = 2_000_000, 4096
# Comments of featureCounts and Expression Atlas; lines of GEO series matrices.
COMMENTS = ("#", "!")
BLANK = {"", "na", "nan", "n/a", "null"}


class Block(NamedTuple):
    """Some rows: text cells (n lists), values (n, columns)."""

    texts: list[list[str]]
    values: np.ndarray


@contextlib.contextmanager
def reading(path: Path, what: str = "table") -> Iterator[None]:
    """Turn what truncated, compressed or foreign files raise into a UserError that names `path`."""
    try:
        yield
    except (ValueError, EOFError, zlib.error, lzma.LZMAError, OSError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a {what} ({reason})") from error


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Yield the decompressed text of a file, and the raw file, whose position shows progress."""
    with open(path, "rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        opener = next(
            (opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), None
        )
        if opener is None:
            with open(path, encoding="utf-8-sig") as text:
                yield text, text.buffer
        else:
            with opener(raw, "rt", encoding="utf-8-sig") as text:
                yield text, raw


class DelimitedFile:
    """A table with a header, separated by tabs where its header has any, else by commas.

    Comment lines, the two lines that begin a GCT file and blank lines are passed over; a header
    without a name for the row names (as R writes it) is completed.

    Args:
        path: the file.
        what: names it in errors.
        may_repeat: says of a column's name whether it may appear again; None: none may.

    Attributes:
        path: the file.
        separator: tab or comma.
        header: a name per column.

    Raises:
        UserError: missing, truncated or binary file, no rows, or a column that appears twice.
    """

    def __init__(
        self,
        path: str | Path,
        what: str = "table",
        may_repeat: Callable[[str], bool] | None = None,
    ) -> None:
        self.path = require_file(path, what)
        with reading(self.path), open_text(self.path) as (text, _):
            lines = _content(text)
            line, first = next(lines, ""), next(lines, "")
        self.separator = "\t" if "\t" in line else ","
        self.header = self._cells(line)
        if first and len(self._cells(first)) == len(self.header) + 1:
            self.header = ["", *self.header]
        seen: set[str] = set()
        for name in self.header:
            if name in seen and not (may_repeat and may_repeat(name)):
                raise UserError(f"{self.path}: column {name} appears more than once")
            seen.add(name)
        if not first:
            raise UserError(f"{self.path}: no rows")

    def preview(self, rows: int, columns: int | None = None) -> list[list[str]]:
        """Return the first cells (all, or those of the first `columns`) of the first rows."""
        with reading(self.path), open_text(self.path) as (text, _):
            lines = itertools.islice(_content(text), 1, rows + 1)
            pick = self._picker(range(len(self.header))[:columns])
            return [pick(line) for line in lines]

    def blocks(
        self, texts: Sequence[int], numbers: Sequence[int], dtype: DTypeLike = np.float64
    ) -> Iterator[Block]:
        """Yield the rows in order, with the cells of `texts` as they are and `numbers` parsed.

        Empty and NA cells are NaN. A bar shows the progress of long tables.

        Raises:
            UserError: the file ends early, a row has more or fewer cells than the header, or a cell
                is not a number; the row is named by its first text cell.
        """
        pick = self._picker(texts)
        rows = min(max(BLOCK_CELLS // len(self.header), 1), BLOCK_ROWS)
        size = self.path.stat().st_size
        with (
            open_text(self.path) as (text, raw),
            tqdm(
                total=size, unit="B", unit_scale=True, desc=self.path.name, delay=3, leave=False
            ) as bar,
        ):
            content = _content(text)
            with reading(self.path):
                next(content)
            while True:
                with reading(self.path):
                    lines = list(itertools.islice(content, rows))
                    position = raw.tell()
                if not lines:
                    return
                cells = [pick(line) for line in lines]
                yield Block(cells, self._parse(lines, cells, numbers, dtype))
                bar.update(position - bar.n)

    def _parse(
        self, lines: list[str], texts: list[list[str]], columns: Sequence[int], dtype: DTypeLike
    ) -> np.ndarray:
        if not len(columns):
            return np.zeros((len(lines), 0), dtype)
        try:
            return np.loadtxt(
                lines, dtype, comments=None, delimiter=self.separator, quotechar='"',
                usecols=columns, ndmin=2,
            )  # fmt: skip
        except ValueError:  # once more, to name the cell
            values = [
                [self._number(cells[column], text, column) for column in columns]
                for cells, text in zip(map(self._cells, lines), texts, strict=True)
            ]
            return np.array(values, dtype)

    def _number(self, cell: str, texts: list[str], column: int) -> float:
        if cell.strip().lower() in BLANK:
            return np.nan
        try:
            return float(cell)
        except ValueError:
            row = f"{texts[0]}, " if texts else ""
            raise UserError(
                f"{self.path}: {row}{self.header[column]}: {cell!r} is not a number"
            ) from None

    def _cells(self, line: str) -> list[str]:
        if '"' not in line:
            return line.split(self.separator)
        with reading(self.path):
            return next(csv.reader([line], delimiter=self.separator), [])

    def _picker(self, columns: Sequence[int]) -> Callable[[str], list[str]]:
        """Return what takes the cells of `columns` out of a line without splitting all of it."""
        width, separator = len(self.header), self.separator
        left = max((column + 1 for column in columns if column < width / 2), default=0)
        right = max((width - column for column in columns if column >= width / 2), default=0)

        def pick(line: str) -> list[str]:
            if '"' in line:
                cells = self._cells(line)
                count = len(cells)
            else:
                count = line.count(separator) + 1
            if count != width:
                name = self._cells(line)[0]
                raise UserError(
                    f"{self.path}: row {name}: {count} cells where the header has {width}"
                )
            if '"' in line:
                return [cells[column] for column in columns]
            first, last = line.split(separator, left), line.rsplit(separator, right)
            return [first[column] if column < left else last[column - width] for column in columns]

        return pick


def _content(text: IO[str]) -> Iterator[str]:
    """Yield the lines that are header or rows, without their ends."""
    for line in text:
        if line.startswith(COMMENTS):
            if line.startswith("#1."):
                next(text, "")  # the dimensions of a GCT file
        elif not line.isspace():
            yield line.rstrip("\n")
