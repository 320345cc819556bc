"""Real tiles as numbered sources, and random draws of them over many slides."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.pixels import IMAGE_SUFFIXES, resize_pixels
from data.tiles import TileStore, open_tile_store
from runtime.errors import UserError
from runtime.files import sha256_of
from runtime.seeds import numpy_generator

END_RECORD = struct.Struct("<4sHHHHIIH")  # a zip's last 22 bytes, unless it carries a comment

LOSSY = {"jpg", "jpeg"}

Tile = TypeVar("Tile")
Tiles = list[tuple[Any, int]]  # (source, number of its tile)


class StoredTiles:
    """The tiles of one slide's store at one size.

    Args:
        store: the opened store.
        slide: as in `wsi_file_name`.
        donor: of that slide.
        image_px: side in pixels that tiles are resized to; None: as stored.
        label: class of the tiles, e.g. the tissue; "": the tile's folder inside a zip, if any.
    """

    def __init__(
        self, store: TileStore, slide: str, donor: str, image_px: int | None, label: str = ""
    ) -> None:
        self.store, self.slide, self.donor, self.image_px = store, slide, donor, image_px
        self.label, self._shape = label, None
        self._identity = {"tiles": store_digest(store), "image_px": image_px}

    def __len__(self) -> int:
        return len(self.store)

    def identity(self) -> dict[str, Any]:
        """Return plain values that change whenever a tile or the order of the tiles would."""
        return self._identity

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pixels uint8 (image_px, image_px, 3) of the tiles of these numbers, in order.

        Raises:
            UserError: a tile is damaged, or of another size than the others.
        """
        for index in indices:
            pixels = self.store.read(index)
            self._shape = self._shape or pixels.shape
            if pixels.shape != self._shape:
                raise UserError(
                    f"{self.store.path}: {self.store.names[index]} is of {pixels.shape}, another"
                    f" tile of {self._shape}; tiles of two sizes cannot be one set"
                )
            yield pixels if self.image_px is None else resize_pixels(pixels, self.image_px)

    def label_of(self, index: int) -> str:
        """Return the class of a tile, or an empty string."""
        return self.label or Path(self.store.names[index]).parent.name

    def encodings(self) -> set[str]:
        """Return the file types of the tiles, e.g. {"png"}."""
        return {Path(name).suffix.lower().removeprefix(".") for name in self.store.names}


def store_digest(store: TileStore) -> str:
    """Return a SHA-256 that stands for a store's tiles and their order, without reading the tiles.

    Of a zip its directory is hashed, which holds every tile's name and CRC-32; of a folder the
    names, sizes and times of change of its images.
    """
    digest = hashlib.sha256()
    if store.path.is_dir():
        for name in store.names:
            facts = os.stat(store.path / name)
            digest.update(f"{name}/{facts.st_size}/{facts.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    with open(store.path, "rb") as handle:
        handle.seek(-min(END_RECORD.size, os.path.getsize(store.path)), os.SEEK_END)
        end = handle.read()
        if len(end) < END_RECORD.size or end[:4] != b"PK\5\6":
            return sha256_of(store.path)
        size, offset = END_RECORD.unpack(end)[5:7]
        handle.seek(offset)
        digest.update(handle.read(size))
    return digest.hexdigest()


@dataclass
class TileSet:
    """One side of a comparison.

    Attributes:
        label: its name.
        identity: plain values that its tiles depend on.
        facts: what it is, for the result.
        draws: the (source, number) of each tile of each draw.
        pool: all tiles of a real set, in random order.
    """

    label: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    draws: list[Tiles]
    pool: Tiles = field(default_factory=list)

    def classes(self) -> list[list[str]]:
        """Return the class of each tile of each draw."""
        return [[source.label_of(index) for source, index in draw] for draw in self.draws]

    def lossy(self) -> set[bool]:
        """Return whether its tiles went through JPEG: {True}, {False}, or both."""
        return {encoding in LOSSY for encoding in self.facts["encoding"]}


def stored_set(
    label: str,
    sources: Sequence[StoredTiles],
    size: int,
    draws: int,
    seed: int,
    facts: dict[str, Any],
) -> TileSet:
    """Return a set of stored tiles, drawn at random over all sources.

    Args:
        label, facts: its name, and what is to be said of it beside the counts.
        sources: one per slide, or one for all.
        size, draws: tiles per draw, and draws.
        seed: of the order.
    """
    pool = [(source, index) for source in sources for index in range(len(source))]
    digest = hashlib.sha256(json.dumps([s.identity() for s in sources]).encode()).hexdigest()
    draw = numpy_generator(seed, "real", digest)
    shuffled = [pool[number] for number in draw.permutation(len(pool))]
    counts = {
        "tiles_available": len(pool),
        "encoding": sorted(set().union(*(source.encodings() for source in sources))),
        "image_px": sources[0].image_px,
    }
    return TileSet(
        label, {"real": digest}, facts | counts, draw_tiles(shuffled, size, draws, draw), shuffled
    )


def open_images(path: str | Path, image_px: int | None) -> list[StoredTiles]:
    """Return the tiles of a folder of images, of a zip, or of a folder with one folder a class.

    Raises:
        UserError: missing, or without an image.
    """
    path = Path(path)
    stores = [path]
    if path.is_dir() and not any(item.suffix.lower() in IMAGE_SUFFIXES for item in path.iterdir()):
        stores = sorted(item for item in path.iterdir() if item.is_dir()) or [path]
    labels = [store.name if store != path else "" for store in stores]
    return [
        StoredTiles(open_tile_store(store), store.name, store.name, image_px, label)
        for store, label in zip(stores, labels, strict=True)
    ]


def draw_tiles(
    shuffled: Sequence[Tile], size: int, draws: int, generator: np.random.Generator
) -> list[list[Tile]]:
    """Return `draws` samples of `size` tiles without replacement from tiles in random order.

    Samples are consecutive and share no tile where the tiles last for all; else each is drawn from
    all tiles. At most `size` tiles are used whole, every time.
    """
    if len(shuffled) <= size:
        return [list(shuffled)] * draws
    if len(shuffled) >= size * draws:
        return [list(shuffled[draw * size : (draw + 1) * size]) for draw in range(draws)]
    orders = [generator.permutation(len(shuffled))[:size] for _ in range(draws)]
    return [[shuffled[number] for number in order] for order in orders]


def donor_halves(
    donors: Sequence[str], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tile numbers of two groups that share no donor, of about as many tiles each.

    Args:
        donors: the donor of each tile.
        generator: orders the donors; each goes to the group that is smaller so far.
    """
    names, numbers, counts = np.unique(list(donors), return_inverse=True, return_counts=True)
    group_of, sizes = np.zeros(len(names), np.int64), [0, 0]
    for number in generator.permutation(len(names)):
        group_of[number] = int(sizes[1] < sizes[0])
        sizes[group_of[number]] += counts[number]
    groups = group_of[numbers]
    return np.flatnonzero(groups == 0), np.flatnonzero(groups == 1)


def disjoint_donor_draws(
    tiles: Sequence[tuple[StoredTiles, int]], size: int, draws: int, seed: int
) -> tuple[list[list[tuple[StoredTiles, int]]], list[list[tuple[StoredTiles, int]]]] | None:
    """Return two lists of draws of real tiles whose donors differ, or None with a single donor.

    Every draw splits the donors anew; its two samples have equally many tiles, at most `size`.
    """
    donors = [source.donor for source, _ in tiles]
    if len(set(donors)) < 2:
        return None
    sides: tuple[list, list] = ([], [])
    for number in range(draws):
        draw = numpy_generator(seed, "donor halves", number)
        halves = donor_halves(donors, draw)
        count = min(size, *(len(half) for half in halves))
        for half, side in zip(halves, sides, strict=True):
            side.append([tiles[place] for place in draw.permutation(half)[:count]])
    return sides
