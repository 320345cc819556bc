"""The folder of a generation run: numbered PNGs per source, their lists, overview pictures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.labelled_tiles import write_tile_list
from data.pixels import image_grid, read_image, write_png
from runtime.errors import UserError

ORDER = ("real", "rna-gan", "gan")
GRID = 8  # tiles per side of grid.png, as in the publication's figures
SHOWN = 32  # tiles of each source in sources.png
COLUMNS = 4
GAP = 16  # px between the sources
TABLE = ("wsi_file_names", "Labels", "patient", "source", "seed", "tile", "profile")


@dataclass(frozen=True)
class Part:
    """Tiles of one source in one folder.

    Attributes:
        source: "real", "rna-gan" or "gan".
        folder: of the PNGs.
        numbers: ascending ranges of tile numbers.
        profile_of: the profile of a tile number.
    """

    source: str
    folder: Path
    numbers: Sequence[range]
    profile_of: Callable[[int], int]

    def __len__(self) -> int:
        return sum(map(len, self.numbers))

    def path(self, number: int) -> Path:
        """Return the file of a tile."""
        return self.folder / f"{number:06d}.png"

    def tiles(self) -> Iterator[int]:
        """Yield the tile numbers."""
        return itertools.chain.from_iterable(self.numbers)

    def missing(self) -> Iterator[int]:
        """Yield the numbers of the tiles that are not there yet."""
        return (number for number in self.tiles() if not self.path(number).exists())


def parse_numbers(text: str) -> list[range]:
    """Return the ascending ranges of `0-599` or `3,8,20-40`.

    Raises:
        UserError: another form, or numbers that do not ascend.
    """
    ranges: list[range] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        this = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not this or (ranges and this[0] <= ranges[-1][-1]):
            raise UserError(f"--seeds {text}: ascending numbers and ranges, as 0-599 or 3,8,20-40")
        ranges.append(this)
    return ranges


def plan_parts(
    folder: Path, real: int, models: Sequence[str], numbers: list[range], profiles: int, steps: bool
) -> list[Part]:
    """Return the parts of a run.

    Args:
        folder: of the run.
        real: number of real tiles.
        models: sources beside the real tiles.
        numbers: of generated tiles.
        profiles: their number; tile k is of profile k modulo it.
        steps: the profiles are the steps of a series: each gets all numbers, hence the same noise.
    """

    def of_step(step: int) -> Callable[[int], int]:
        return lambda number: step

    parts = [Part("real", folder / "real", [range(real)], of_step(0))] if real else []
    for source in models:
        if steps and source == "rna-gan":
            parts += [
                Part(source, folder / source / f"step_{step:02d}", numbers, of_step(step))
                for step in range(profiles)
            ]
        else:
            parts.append(Part(source, folder / source, numbers, lambda number: number % profiles))
    return parts


def write_lists(
    folder: Path,
    parts: Sequence[Part],
    owner: Callable[[Part, int], tuple[str, str, int]],
    seed: int,
) -> None:
    """Write tiles_<source>.csv of every source: a row a tile, as `read_labelled_tiles` reads it.

    Args:
        folder: of the run.
        parts: of `plan_parts`.
        owner: returns label, patient and profile of a part's tile number.
        seed: of the run.
    """
    for source in dict.fromkeys(part.source for part in parts):
        rows = (
            (_name(folder, part, number), label, patient, source, seed, number, profile)
            for part in parts
            if part.source == source
            for number in part.tiles()
            for label, patient, profile in [owner(part, number)]
        )
        write_tile_list(folder / f"tiles_{source}.csv", TABLE, rows)


def write_pictures(folder: Path, parts: Sequence[Part]) -> None:
    """Write grid.png of the first model's tiles and sources.png of all sources side by side.

    With a series the rows of the grid are its steps.
    """
    first = [part for part in parts if part.source != "real"]
    first = [part for part in first if part.source == first[0].source]
    if len(first) > 1:
        tiles = np.concatenate([_read(part, GRID) for part in first])
        columns = min(GRID, len(first[0]))
    else:
        tiles = _read(first[0], GRID**2)
        columns = min(GRID, len(tiles))
    write_png(folder / "grid.png", image_grid(tiles, columns))
    own = {part.source: part for part in reversed(parts)}
    shown = min(SHOWN, *map(len, own.values()))
    blocks = []
    for source in ORDER:
        if source in own:
            block = image_grid(_read(own[source], shown), COLUMNS)
            blocks += [block, np.full((len(block), GAP, 3), 255, np.uint8)]
    write_png(folder / "sources.png", np.concatenate(blocks[:-1], axis=1))


def _read(part: Part, count: int) -> np.ndarray:
    return np.stack([read_image(part.path(k)) for k in itertools.islice(part.tiles(), count)])


def _name(folder: Path, part: Part, number: int) -> str:
    return f"{folder.name}/{part.path(number).relative_to(folder).as_posix()}"
