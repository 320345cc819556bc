"""Tile stores (a zip of PNG or JPEG tiles per slide, or a folder of images), their dataset."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from data.encoding import SUFFIXES, decode_image, encode_jpeg, encode_png
from data.pixels import IMAGE_SUFFIXES, resize_pixels
from runtime.errors import UserError
from runtime.files import atomic_path
from runtime.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "rna-gan-tiles/1"
SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm",
    ".czi",
)  # fmt: skip
# Images without a pyramid, read by Pillow.
PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")
INDEX_NAME = "index.csv"
INFO_NAME = "store.json"
INDEX_COLUMNS = ["name", "x", "y", "mpp", "tissue_fraction"]
BLUR_COLUMN = "blur"  # only where it was measured
# A fixed date, so that the same tiles give the same bytes; the earliest that zip can hold.
MEMBER_DATE = (1980, 1, 1, 0, 0, 0)
OPEN_FILES = 64
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
REPAIR = "delete it and run extract_tiles.py again"


class Tile(NamedTuple):
    """One tile of a slide.

    Attributes:
        x: left edge in pixels of the slide's level 0.
        y: top edge in pixels of the slide's level 0.
        tissue_fraction: share of the tile's area inside the slide's tissue mask, 0 to 1.
        pixels: uint8 (tile_px, tile_px, 3) RGB.
        blur: 0 (sharp) to 1, see `data.artefacts.blur_of`; None where it was not measured.
    """

    x: int
    y: int
    tissue_fraction: float
    pixels: np.ndarray
    blur: float | None = None


def slide_stem(name: str) -> str:
    """Return a slide's file name without its suffix; other dots in the name stay."""
    suffix = Path(name).suffix
    known = (*SLIDE_SUFFIXES, *PLAIN_SUFFIXES)
    return name.removesuffix(suffix) if suffix.lower() in known else name


def store_path(patch_path: str | Path, slide: str) -> Path:
    """Return where the tile store of a slide belongs: `<patch_path>/<slide>.svs/<slide>.zip`."""
    return Path(patch_path) / slide / f"{slide_stem(slide)}.zip"


def find_tile_store(patch_path: str | Path, name: str) -> Path | None:
    """Return the tile store of a slide or sample, or None where there is none.

    Looked for, in this order: a zip in the folder `<name>`, `<stem>.svs` or `<stem>`; images in one
    of these folders; `<stem>.zip` beside them.

    Args:
        patch_path: the tile folder of a tissue (`patch_data_path` of a config).
        name: as in `wsi_file_name`, with or without its `.svs`.
    """
    patch_path, stem = Path(patch_path), slide_stem(name)
    folders = [patch_path / part for part in dict.fromkeys((name, f"{stem}.svs", stem))]
    for folder in folders:
        if (path := folder / f"{stem}.zip").is_file():
            return path
    for folder in folders:
        if folder.is_dir() and any(map(_is_image, os.listdir(folder))):
            return folder
    beside = patch_path / f"{stem}.zip"
    return beside if beside.is_file() else None


def find_tile_stores(patch_paths: Sequence[str | Path], names: Sequence[str]) -> dict[str, Path]:
    """Return the tile store of every slide that has one, looked for in each tile folder in turn.

    Args:
        patch_paths: the tile folders of a config (`patch_data_path`).
        names: slides or samples, as in `wsi_file_name`.
    """
    pairs = ((name, find_tile_store(folder, name)) for name in names for folder in patch_paths)
    return {name: store for name, store in pairs if store is not None}


def write_tile_store(
    path: str | Path,
    slide: str,
    tiles: Iterable[Tile],
    tile_px: int,
    mpp: float,
    settings: dict[str, Any],
    seed: int | None = None,
    jpeg_quality: int | None = None,
) -> int:
    """Write a tile store, whole or not at all, and return its number of tiles; none writes nothing.

    The bytes depend on the arguments alone. Tiles go to the file as they come, so that one is held
    in memory at a time; the order that readers see is the index's.

    Args:
        path: the zip to write, see `store_path`.
        slide: the slide's file name.
        tiles: the tiles (or tuples of a Tile's fields), in any order, no two at the same place.
        tile_px: side of a tile, px.
        mpp: resolution of the tiles, um/px.
        settings: plain values that the tiles depend on, kept in `store.json`.
        seed: shuffles the index, so that its first K tiles are a random sample; None does not.
        jpeg_quality: 1 to 100 makes JPEG tiles, with chroma at full resolution; None: PNG.

    Raises:
        UserError: the file cannot be written; whatever the iterable raises passes through.
    """
    tiles = iter(tiles)
    first = next(tiles, None)
    if first is None:
        return 0
    rows = []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for tile in itertools.starmap(Tile, itertools.chain([first], tiles)):
            name = f"{tile.x}_{tile.y}{SUFFIXES['jpeg' if jpeg_quality else 'png']}"
            _add(
                archive,
                name,
                encode_jpeg(tile.pixels, jpeg_quality) if jpeg_quality else encode_png(tile.pixels),
            )
            row = (name, tile.x, tile.y, mpp, round(float(tile.tissue_fraction), 4))
            rows.append(row if tile.blur is None else (*row, round(tile.blur, 4)))
        if seed is not None:
            order = numpy_generator(seed, "tiles", slide).permutation(len(rows))
            rows = [rows[number] for number in order]
            # The central directory, written on closing, lists the members in this order.
            archive.filelist[:] = [archive.filelist[number] for number in order]
        index = pd.DataFrame(rows, columns=[*INDEX_COLUMNS, BLUR_COLUMN][: len(rows[0])])
        info = {"format": FORMAT, "slide": slide, "tile_px": tile_px, "mpp": mpp, **settings}
        _add(archive, INDEX_NAME, index.to_csv(index=False).encode())
        _add(archive, INFO_NAME, (json.dumps(info, indent=2) + "\n").encode())
    return len(rows)


class TileStore:
    """The tiles of one slide, read at random; safe after fork and spawn and with several threads.

    Attributes:
        path: the zip or the folder of images.
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        """Open a store; `limit` keeps its first tiles only.

        Raises:
            UserError: missing, truncated, or without a tile.
        """
        self.path = Path(path)
        self._stamp, members, indexed = 0, None, False
        if self.path.is_dir():
            names = sorted(filter(_is_image, os.listdir(self.path)))
        elif self.path.is_file():
            names, members, indexed = self._list_zip()
        else:
            raise UserError(f"{self.path}: tile store not found")
        if not names:
            raise UserError(f"{self.path}: empty tile store (no image in it)")
        order = np.arange(len(names))
        if not indexed:
            # Sorted names follow the position in the slide: the first K would be one corner of it.
            numpy_generator(0, "names", self.path.stem).shuffle(order)
        order = order[:limit]
        # Arrays, not objects: a cohort has hundreds of thousands of tiles.
        self._names = np.array([os.fsencode(name) for name in names])[order]
        self._members = None if members is None else members[order]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """File names of the tiles, in the order of `read`."""
        return [os.fsdecode(name) for name in self._names]

    @property
    def info(self) -> dict[str, Any]:
        """What `store.json` says (slide, tile_px, mpp, settings); empty where there is none."""
        return json.loads(self._text(INFO_NAME) or b"{}")

    @property
    def index(self) -> pd.DataFrame:
        """Columns name, x, y, mpp, tissue_fraction (blur too where it was measured) in the order of
        `read`; NaN without an index."""
        text = self._text(INDEX_NAME)
        frame = pd.DataFrame({"name": self.names})
        if text is None:
            return frame.reindex(columns=INDEX_COLUMNS)
        return frame.merge(pd.read_csv(io.BytesIO(text)), on="name", how="left")

    def read(self, number: int) -> np.ndarray:
        """Return tile `number` as uint8 RGB pixels (H, W, 3).

        Raises:
            UserError: the tile is damaged.
        """
        try:
            return decode_image(self._bytes(number))
        except (OSError, SyntaxError, ValueError, zlib.error) as error:
            raise self._damage(number, error) from error

    def encoded(self, number: int) -> bytes:
        """Return tile `number` as the bytes of its image file, checked against its checksum.

        Raises:
            UserError: the tile is damaged.
        """
        try:
            return self._bytes(number)
        except (OSError, ValueError, zlib.error) as error:
            raise self._damage(number, error) from error

    def damaged(self) -> list[str]:
        """Return the names of the tiles that cannot be read, having read all."""
        names = []
        for number in range(len(self)):
            try:
                self.read(number)
            except UserError:
                names.append(os.fsdecode(self._names[number]))
        return names

    def _damage(self, number: int, error: Exception) -> UserError:
        name = os.fsdecode(self._names[number])
        return UserError(f"{self.path}: tile {name} is damaged ({error}); {REPAIR}")

    def _list_zip(self) -> tuple[list[str], np.ndarray, bool]:
        try:
            self._stamp = self.path.stat().st_mtime_ns
            with zipfile.ZipFile(self.path) as archive:
                members = [member for member in archive.infolist() if _is_image(member.filename)]
                indexed = INDEX_NAME in archive.NameToInfo
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"{self.path}: damaged tile store ({error}); {REPAIR}") from error
        places = np.array(
            [(m.header_offset, m.compress_size, m.CRC) for m in members],
            dtype=[("offset", np.int64), ("size", np.uint32), ("crc", np.uint32)],
        )
        return [member.filename for member in members], places, indexed

    def _bytes(self, number: int) -> bytes:
        """Return a tile's file; no ZipFile, whose objects per member would fill the memory."""
        if self._members is None:
            return (self.path / os.fsdecode(self._names[number])).read_bytes()
        offset, size, crc = (int(value) for value in self._members[number])
        handle = _open(str(self.path), self._stamp)
        header = handle.read(offset, LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            raise ValueError("no member where the zip's directory says")
        fields = LOCAL_HEADER.unpack(header)
        method, name_length, extra_length = fields[3], fields[9], fields[10]
        content = handle.read(offset + LOCAL_HEADER.size + name_length + extra_length, size)
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompress(content, -zlib.MAX_WBITS)
        if zlib.crc32(content) != crc:
            raise ValueError("wrong checksum")
        return content

    def _text(self, name: str) -> bytes | None:
        if self._members is None:
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name) if name in archive.NameToInfo else None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self.path}: {name} in it is damaged ({error}); {REPAIR}") from error


def open_tile_store(path: str | Path, limit: int | None = None) -> TileStore:
    """Return the tile store at `path`, a zip or a folder of images; `limit` keeps its first tiles.

    Raises:
        UserError: missing, truncated, or without a tile.
    """
    return TileStore(path, limit)


class TileDataset:
    """Tiles of many stores: item (uint8 pixels (px, px, 3), number of its store in the list given).

    A tile costs about 40 bytes, and a process keeps at most 64 files open, whatever their number.

    Attributes:
        stores: the stores, in the order given.
        slide_numbers: int32 (N,), the store of each tile.
    """

    def __init__(
        self,
        stores: Sequence[str | Path | TileStore],
        max_tiles: int | None = None,
        image_px: int | None = None,
    ) -> None:
        """List the tiles of the stores.

        Args:
            stores: paths of stores, or opened ones.
            max_tiles: the first so many of each store, a random sample of it; None for all.
            image_px: side that tiles are resized to (`data.pixels.resize_pixels`); None: as stored.

        Raises:
            UserError: a store is missing, damaged or empty.
        """
        self.stores = [
            store if isinstance(store, TileStore) else open_tile_store(store, max_tiles)
            for store in stores
        ]
        counts = [
            len(store) if max_tiles is None else min(len(store), max_tiles) for store in self.stores
        ]
        self.image_px = image_px
        self.slide_numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._firsts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return len(self.slide_numbers)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        store, tile = self._place(number)
        pixels = self.stores[store].read(tile)
        if self.image_px is not None:
            pixels = resize_pixels(pixels, self.image_px)
        import torch  # seconds, and not needed to write tiles

        # PIL's arrays are read-only, which torch warns about.
        return torch.from_numpy(pixels.copy()), store

    def name_of(self, number: int) -> str:
        """Return a tile's store and file name, as `<store>/<tile>`."""
        store, tile = self._place(number)
        return f"{self.stores[store].path}/{os.fsdecode(self.stores[store]._names[tile])}"

    def _place(self, number: int) -> tuple[int, int]:
        store = int(self.slide_numbers[number])
        return store, int(number % len(self) - self._firsts[store])


class _File:
    """A file read at given places; closed when the last reader lets go of it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        # pread has no position that forked processes or threads could share.
        return os.pread(self._descriptor, size, offset)

    def __del__(self, close: Any = os.close) -> None:
        if hasattr(self, "_descriptor"):
            close(self._descriptor)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: str, stamp: int) -> _File:
    """Return the file, opened once; `stamp` tells a rewritten store from the one read before."""
    return _File(path)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, MEMBER_DATE), content)


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
