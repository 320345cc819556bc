"""Tiles found at paths that a user names: which source, which tissue, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data.pixels import IMAGE_SUFFIXES, read_image
from data.tiles import TileStore, slide_stem
from runtime.errors import UserError

SOURCES = ("real", "gan", "rna-gan")


class FoundTile(NamedTuple):
    """A tile not read yet.

    Attributes:
        source: one of `SOURCES`.
        tissue: e.g. "lung".
        name: where it is, for people.
        read: returns its pixels, uint8 (H, W, 3).
    """

    source: str
    tissue: str
    name: str
    read: Callable[[], np.ndarray]


def split_tissue(text: str) -> tuple[str | None, Path]:
    """Return the tissue (None when not said) and the path of `TISSUE=PATH` or `PATH`.

    Raises:
        UserError: nothing is at the path.
    """
    tissue, found, path = text.rpartition("=")
    if not found or Path(text).exists():
        tissue, path = "", text
    if not Path(path).exists():
        raise UserError(f"{path}: no tiles there (no such file or folder)")
    return tissue or None, Path(path)


def tiles_of_table(table: Path, tissue: str | None, real: bool) -> Iterator[FoundTile]:
    """Yield the tiles of a table of generate_tissue_images.py that are real, or those that are not.

    Raises:
        UserError: the table cannot be read, or names another source.
    """
    try:
        frame = pd.read_csv(table)[["wsi_file_names", "Labels", "source"]]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{table}: not a table of generate_tissue_images.py ({error})") from error
    for name, label, source in frame.itertuples(index=False):
        if source not in SOURCES:
            raise UserError(f"{table}: source {source!r}; one of {', '.join(SOURCES)} is needed")
        if (source == "real") == real:
            # The table's names begin with its folder, which may have been renamed.
            path = table.parent.joinpath(*Path(name).parts[1:])
            yield FoundTile(source, tissue or str(label), str(path), lambda p=path: read_image(p))


def tiles_below(path: Path, tissue: str | None, source: str) -> Iterator[FoundTile]:
    """Yield the tiles of a store, of all stores below a path, or of all folders of images there.

    Where there are stores, loose images beside them (overviews of slides) are no tiles.
    """
    stores = [path] if path.is_file() else sorted(path.rglob("*.zip"))
    if not stores:
        images = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        stores = sorted({image.parent for image in images})
    for store_path in stores:
        store, folder = TileStore(store_path), store_path.resolve()
        if store_path.is_file():
            named = slide_stem(folder.parent.name) == folder.stem
            folder = folder.parent.parent if named else folder.parent
        elif slide_stem(folder.name) != folder.name:
            folder = folder.parent
        for number, name in enumerate(store.names):
            yield FoundTile(
                source,
                tissue or folder.name,
                f"{store_path}/{name}",
                lambda s=store, n=number: s.read(n),
            )
