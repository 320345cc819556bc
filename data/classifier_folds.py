"""What a classifier run trains on and is tested on: arms, folds, and the rows of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.labelled_tiles import (
    LabelledTiles,
    assign_folds,
    check_folds,
    held_out_rows,
    most_folds,
    read_labelled_tiles,
)
from runtime.errors import UserError
from runtime.run import log
from runtime.seeds import derived_seed

# What each arm is trained on, stage by stage.
ARMS = {
    "real": (("real",),),
    "generated": (("generated",),),
    "both": (("real", "generated"),),
    "pretrain": (("generated",), ("real",)),
}


class Lists(NamedTuple):
    """Images of every kind as one numbering: those of `tiles`, then the generated, then the test's.

    Attributes:
        tiles, generated, test: the lists; `test` is `tiles` where the folds hold the test images.
        fold_of: fold of each image of `tiles`.
        test_rows: rows of `test` that each fold is tested on.
    """

    tiles: LabelledTiles
    generated: LabelledTiles | None
    test: LabelledTiles
    fold_of: np.ndarray
    test_rows: dict[int, np.ndarray]

    def stage_rows(self, kinds: tuple[str, ...], fold: int) -> np.ndarray:
        """Return the numbers of a stage's training images in a fold."""
        parts = []
        if "real" in kinds:
            parts.append(np.flatnonzero(self.fold_of != fold))
        if "generated" in kinds:
            tested = self.test_rows[fold]
            parts.append(len(self.tiles) + held_out_rows(self.test, self.generated, tested))
        return np.concatenate(parts)

    @property
    def all(self) -> list[LabelledTiles]:
        """The lists in the order of the numbering."""
        lists = [self.tiles, self.generated, None if self.test is self.tiles else self.test]
        return [one for one in lists if one is not None]

    @property
    def test_offset(self) -> int:
        """Number of the first test image."""
        return 0 if self.test is self.tiles else sum(map(len, self.all)) - len(self.test)


def read_lists(
    csv_paths: Sequence[Path],
    folder: Path,
    group: str | None,
    test_csv: Sequence[Path] | None,
    generated_csv: Sequence[Path] | None,
    arms: Sequence[str],
    folds: int,
    seed: int,
) -> Lists:
    """Return the lists of a classifier run, divided into folds.

    Args:
        csv_paths, folder, group: as `read_labelled_tiles`, of the images that make the folds.
        test_csv, generated_csv: lists to test on instead, and to train on too; or None.
        arms: of ARMS, that will be trained.
        folds: their number.
        seed: of the folds.

    Raises:
        UserError: unknown labels, too few groups, or a fold without training or test images.
    """
    csv_names = ", ".join(map(str, csv_paths))
    tiles = test = read_labelled_tiles(csv_paths, folder, group)
    generated = None
    others = {"--test_csv": test_csv, "--generated_csv": generated_csv}
    for flag, paths in others.items():
        if paths:
            listed = read_labelled_tiles(paths, folder, group)
            unknown = sorted(set(listed.labels) - set(tiles.labels))
            if unknown:
                raise UserError(f"{flag}: label {unknown[0]} is not in {csv_names}")
            test, generated = (listed, generated) if flag == "--test_csv" else (test, listed)
    if tiles.groups and group is None and most_folds(tiles) == 1:
        # The published lists hold one patient per class, who cannot be in both parts.
        log.info(
            "%s: a class has a single %s, so folds are split by image; scores may be optimistic",
            csv_names,
            tiles.grouped_by,
        )
        tiles.groups = tiles.grouped_by = None
    check_folds(tiles, folds, csv_names)
    fold_of = assign_folds(tiles, folds, derived_seed(seed, "folds"))
    test_rows = {}
    for fold in range(1, folds + 1):
        rows = held_out_rows(tiles, test, np.flatnonzero(fold_of != fold))
        if not len(rows):
            raise UserError(f"fold {fold}: no test image left that shares no group with training")
        test_rows[fold] = rows
    lists = Lists(tiles, generated, test, fold_of, test_rows)
    for arm in arms:
        for kinds in ARMS[arm]:
            labels = lists.all[1].labels if kinds == ("generated",) else tiles.labels
            few = [fold for fold in test_rows if len(lists.stage_rows(kinds, fold)) < 2]
            if few or set(labels) != set(tiles.labels):
                what = f"fold {few[0]}: fewer than 2 images" if few else "not every label"
                raise UserError(f"--train {arm}: {what} among the {' and '.join(kinds)} ones")
    return lists
