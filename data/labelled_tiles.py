"""Lists of tile images with class labels, and their division into cross-validation folds."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor
from tqdm import tqdm

from data.pixels import read_image, resize_pixels
from runtime.errors import UserError
from runtime.files import atomic_path, require_file, sha256_of

NAME_COLUMNS = ("wsi_file_names", "wsi_file_name")
LABEL_COLUMN = "Labels"
GROUP_COLUMNS = ("group", "patient", "donor")
# Columns whose slide ids stand for their donor.
DONOR_COLUMNS = ("patient", "donor")
# A slide id such as GTEX-15RJ7-0625 anywhere in a path: two fields of donor, four digits of block.
SLIDE_ID = re.compile(r"(?<![A-Za-z0-9-])([A-Z]+-[A-Za-z0-9]+)-\d{4}(?!\d)")


@dataclass
class LabelledTiles:
    """N tile images with labels.

    Attributes:
        names: N image names as the list gives them, unique.
        paths: N image files.
        labels: N class labels, as text.
        groups: N groups that no two folds may share, or None when the list tells none.
        grouped_by: where the groups come from: a column's name, "file name", or None.
    """

    names: list[str]
    paths: list[Path]
    labels: list[str]
    groups: list[str] | None
    grouped_by: str | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> list[str]:
        """The distinct labels: by number when all are whole numbers, else by alphabet."""
        distinct = set(self.labels)
        numeric = all(label.lstrip("-").isdigit() for label in distinct)
        return sorted(distinct, key=int if numeric else None)

    def digest(self) -> str:
        """Return a SHA-256 over the list and the content of every image in it."""
        digest = hashlib.sha256(repr((self.names, self.labels, self.groups)).encode())
        for path in self.paths:
            digest.update(sha256_of(path).encode())
        return digest.hexdigest()

    def load_pixels(self, image_px: int) -> Tensor:
        """Return all images as uint8 pixels (N, image_px, image_px, 3).

        Raises:
            UserError: an image is truncated or not an image.
        """
        pixels = np.empty((len(self), image_px, image_px, 3), np.uint8)
        for number, path in enumerate(tqdm(self.paths, "reading images", unit="image", delay=2)):
            pixels[number] = resize_pixels(read_image(path), image_px)
        return torch.from_numpy(pixels)


def read_labelled_tiles(
    csv_paths: Sequence[str | Path], folder: str | Path, group: str | None = None
) -> LabelledTiles:
    """Return the tiles that CSVs list in `wsi_file_names` (or `wsi_file_name`) and `Labels`.

    Args:
        csv_paths: one or more lists; names in them are relative to `folder` or absolute.
        folder: folder of the images.
        group: column of the groups; "none" for no groups; None for the first of the columns group,
            patient and donor, else for the donor of the slide id when every name holds one. A slide
            id in a column patient or donor stands for its donor.

    Raises:
        UserError: missing file, column, label or image, an image listed twice, or an empty list.
    """
    frames = [_read_list(require_file(path, "tile list")) for path in csv_paths]
    where = ", ".join(map(str, csv_paths))
    frame = pd.concat(frames, ignore_index=True)
    names = frame[NAME_COLUMNS[0]].tolist()
    group_column, groups = _groups(frame, names, group, where)
    for column in (NAME_COLUMNS[0], LABEL_COLUMN, group_column):
        if column in frame and frame[column].isna().any():
            row = int(np.flatnonzero(frame[column].isna())[0]) + 1
            raise UserError(f"{where}: row {row}: {column} is empty")
    repeated = frame[NAME_COLUMNS[0]].duplicated()
    if repeated.any():
        raise UserError(f"{where}: {names[int(repeated.argmax())]} is listed more than once")
    paths = [Path(folder) / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{where}: image {missing[0]} not found ({len(missing)} of {len(paths)} missing);"
            " check --patch_data_path"
        )
    return LabelledTiles(names, paths, frame[LABEL_COLUMN].tolist(), groups, group_column)


def write_tile_list(
    path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a list that `read_labelled_tiles` reads, whole or not at all, one row in memory.

    Args:
        path: CSV to write.
        columns: among them the first of NAME_COLUMNS and LABEL_COLUMN.
        rows: values in the order of the columns.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _read_list(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error
    found = f"found: {', '.join(frame.columns)}"
    name_column = next((column for column in NAME_COLUMNS if column in frame), None)
    if name_column is None:
        raise UserError(f"{path}: no column {NAME_COLUMNS[0]} ({found})")
    if LABEL_COLUMN not in frame:
        raise UserError(f"{path}: no column {LABEL_COLUMN} ({found})")
    if frame.empty:
        raise UserError(f"{path}: no rows")
    return frame.rename(columns={name_column: NAME_COLUMNS[0]})


def _groups(
    frame: pd.DataFrame, names: Sequence[str], group: str | None, where: str
) -> tuple[str | None, list[str] | None]:
    if group == "none":
        return None, None
    if group is not None and group not in frame:
        raise UserError(f"{where}: no column {group} (found: {', '.join(frame.columns)})")
    column = group or next((name for name in GROUP_COLUMNS if name in frame), None)
    if column:
        values = frame[column].tolist()
        if column in DONOR_COLUMNS:
            matches = [SLIDE_ID.match(str(value)) for value in values]
            values = [m.group(1) if m else v for m, v in zip(matches, values, strict=True)]
        return column, values
    found = [SLIDE_ID.search(str(name)) for name in names]
    if all(found):
        return "file name", [match.group(1) for match in found if match]
    return None, None


def most_folds(tiles: LabelledTiles) -> int:
    """Return the smallest number of groups (of images where there are none) that a class has."""
    groups = tiles.groups or tiles.names
    return int(pd.Series(groups).groupby(pd.Series(tiles.labels)).nunique().min())


def check_folds(tiles: LabelledTiles, folds: int, where: str | Path) -> None:
    """Raise a UserError unless the list holds two classes with at least `folds` groups in each."""
    if len(tiles.classes) < 2:
        raise UserError(f"{where}: one class only ({tiles.classes[0]}); two or more are needed")
    most = most_folds(tiles)
    if most < folds:
        what = f"values of {tiles.grouped_by}" if tiles.groups else "images"
        ways = [f"--folds {most}"] if most > 1 else []
        ways += ["--group none (folds by image)"] if tiles.groups else []
        way = f"; use {' or '.join(ways)}" if ways else ""
        raise UserError(
            f"{where}: the smallest class has {most} {what}, fewer than {folds} folds{way}"
        )


def assign_folds(tiles: LabelledTiles, folds: int, seed: int) -> np.ndarray:
    """Return the fold, 1 to `folds`, of each tile: stratified by label, no group in two folds.

    The folds depend on the groups, the labels and the seed: two lists with the same groups and the
    same number of tiles in each (a real and a generated one) get the same folds.

    Args:
        tiles: at least `folds` groups in each class, see `check_folds`.
    """
    labels = np.array(tiles.labels)
    if tiles.groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
        parts = splitter.split(labels, labels)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
        parts = splitter.split(labels, labels, np.array(tiles.groups))
    fold_of = np.zeros(len(labels), np.int64)
    for fold, (_, held_out) in enumerate(parts, start=1):
        fold_of[held_out] = fold
    return fold_of


def held_out_rows(tiles: LabelledTiles, test: LabelledTiles, used: np.ndarray) -> np.ndarray:
    """Return the rows of `test` that share no image and no group with rows `used` of `tiles`."""
    paths = {tiles.paths[row].resolve() for row in used}
    keep = np.array([path.resolve() not in paths for path in test.paths])
    if tiles.groups and test.groups:
        keep &= ~np.isin(test.groups, [tiles.groups[row] for row in used])
    return np.flatnonzero(keep)
