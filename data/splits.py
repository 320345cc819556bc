"""The donor split: one file, written by the first stage that needs it, read by all others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from data.expression import ExpressionTable
from runtime.errors import UserError
from runtime.files import atomic_path
from runtime.seeds import numpy_generator

PARTITIONS = ("train", "val", "test")
FRACTIONS = (0.64, 0.16, 0.20)


def split_donors(donors: Iterable[str], seed: int) -> dict[str, str]:
    """Return the partition of each donor: 64 % train, 16 % val, 20 % test, shuffled by the seed.

    With at least three donors every partition holds at least one.

    Source: the published proportions, here by donor, so that no donor is on both sides.
    """
    order = sorted(set(donors))
    numpy_generator(seed, "split").shuffle(order)
    val = round(len(order) * FRACTIONS[1])
    test = round(len(order) * FRACTIONS[2])
    if len(order) >= 3:
        val, test = max(val, 1), max(test, 1)
    sizes = (len(order) - val - test, val, test)
    labels = [name for name, size in zip(PARTITIONS, sizes, strict=True) for _ in range(size)]
    return dict(zip(order, labels, strict=True))


def load_split(
    path: str | Path, donors: Iterable[str], seed: int, write: bool = True
) -> dict[str, str]:
    """Return the partition of every donor, reading the split file and writing what it does not
    hold yet.

    Donors already in the file keep their partition for ever; new ones are split among themselves.

    Args:
        path: CSV with columns donor, partition.
        donors: donors that must have a partition.
        seed: of the shuffle of new donors.
        write: keep the partition of new donors; a dry run does not.

    Raises:
        UserError: the file is not such a table.
    """
    path, donors = Path(path), set(donors)
    split: dict[str, str] = {}
    if path.is_file():
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:
            raise UserError(f"{path}: not a donor split ({str(error).splitlines()[0]})") from error
        if (
            list(frame.columns) != ["donor", "partition"]
            or not frame.partition.isin(PARTITIONS).all()
            or frame.donor.duplicated().any()
        ):
            raise UserError(
                f"{path}: not a donor split (columns donor, partition; {', '.join(PARTITIONS)})"
            )
        split = dict(zip(frame.donor, frame.partition, strict=True))
    new = donors - split.keys()
    if new:
        split |= split_donors(new, seed)
    if new and write:
        with atomic_path(path) as temporary:
            rows = sorted(split.items())
            pd.DataFrame(rows, columns=["donor", "partition"]).to_csv(temporary, index=False)
    return {donor: split[donor] for donor in sorted(donors)}


def untrained_rows(
    table: ExpressionTable, split: dict[str, str], train_slides: Iterable[str]
) -> np.ndarray:
    """Return which rows (N,) bool are of donors that no network has seen.

    Args:
        table: N profiles.
        split: the betaVAE's partition of each donor; "test" ones are unseen.
        train_slides: slides whose tiles a GAN was trained on.
    """
    slides = set(train_slides)
    seen = {donor for donor, name in zip(table.donors, table.names, strict=True) if name in slides}
    return np.array([split.get(donor) == "test" and donor not in seen for donor in table.donors])
