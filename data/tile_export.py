"""Tile stores in the forms that other tools read: StyleGAN's zip, and folders of images."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from data.tiles import MEMBER_DATE, TileStore
from runtime.errors import UserError
from runtime.files import atomic_path

TILES_PER_FOLDER = 1000
LABEL_DIGITS = 6


def export_stylegan(
    path: str | Path, stores: Mapping[str, TileStore], labels: Mapping[str, Sequence[float]] | None
) -> int:
    """Write the zip that StyleGAN2, StyleGAN3, EDM and their kin train on; return its tiles.

    Members are `00000/img00000000.png` and so on, bytes as in the stores, and `dataset.json` with
    the label vector of every tile, or null.

    Args:
        stores: by slide, in the order wanted.
        labels: the label vector of each slide, all of one length; None for no labels.

    Raises:
        UserError: tiles that are not square, of a power of two and of one size; a damaged tile; no
            label for a slide; the file cannot be written.

    Source: NVlabs/stylegan3, dataset_tool.py and training/dataset.py (layout only).
    """
    _check_sizes(stores)
    if labels is not None and (missing := [slide for slide in stores if slide not in labels]):
        raise UserError(f"{missing[0]}: no label vector for it")
    number, label_of_tile = 0, []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for slide, store in stores.items():
            for tile, name in enumerate(store.names):
                member = f"{number // TILES_PER_FOLDER:05d}/img{number:08d}{_suffix(name)}"
                archive.writestr(zipfile.ZipInfo(member, MEMBER_DATE), store.encoded(tile))
                label_of_tile.append((member, slide))
                number += 1
        info = zipfile.ZipInfo("dataset.json", MEMBER_DATE)
        with archive.open(info, "w", force_zip64=True) as handle:
            for part in _dataset_json(label_of_tile, labels):
                handle.write(part.encode())
    return number


def export_images(path: str | Path, stores: Mapping[str, TileStore]) -> int:
    """Write `<slide>/<x>_<y>.png` for every tile and `tiles.csv`, the index of all; return the
    number of tiles.

    The folder appears whole or not at all.

    Raises:
        UserError: the folder exists, a tile is damaged, or a file cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists; name another --export_path or remove it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    tables = []
    try:
        for slide, store in stores.items():
            folder = temporary / slide
            folder.mkdir(parents=True)
            for tile, name in enumerate(store.names):
                (folder / Path(name).name).write_bytes(store.encoded(tile))
            index = store.index
            index["name"] = [f"{slide}/{Path(name).name}" for name in store.names]
            tables.append(index.assign(slide=slide))
        index = pd.concat(tables, ignore_index=True).rename(columns={"name": "file"})
        index.to_csv(temporary / "tiles.csv", index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(index)


def _check_sizes(stores: Mapping[str, TileStore]) -> None:
    first = None
    for store in stores.values():
        shape = store.read(0).shape
        first = first or shape
        side = shape[0]
        if shape != first or side != shape[1] or side & (side - 1):
            raise UserError(
                f"{store.path}: tiles of {shape[1]} x {side} px; StyleGAN needs squares of one"
                " size, a power of two"
            )


def _dataset_json(
    members: list[tuple[str, str]], labels: Mapping[str, Sequence[float]] | None
) -> Iterator[str]:
    """Yield the text of dataset.json in parts: a latent of 2048 numbers repeats for every tile."""
    if labels is None:
        yield json.dumps({"labels": None})
        return
    texts = {
        slide: json.dumps([round(float(value), LABEL_DIGITS) for value in vector])
        for slide, vector in labels.items()
    }
    for number, (member, slide) in enumerate(members):
        head = ", " if number else '{"labels": ['
        yield f"{head}[{json.dumps(member)}, {texts[slide]}]"
    yield "]}"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
