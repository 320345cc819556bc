"""The tiles and profiles a GAN is trained on, and the batches of its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.expression import ExpressionTable, read_cohort
from data.splits import load_split
from data.tiles import TileDataset, find_tile_stores
from runtime.errors import UserError
from runtime.seeds import torch_generator

READ_AT_ONCE = 64


class TrainingTiles(NamedTuple):
    """Tiles and profiles of a run.

    table: all profiles of the config. training: per table row, whether its donor is trained on.
    rows, held_out: table rows of the slides with tiles of donors trained on, and of the others.
    tiles, held_out_tiles: their tiles; None where no held-out donor has any.
    """

    table: ExpressionTable
    training: np.ndarray
    rows: list[int]
    held_out: list[int]
    tiles: TileDataset
    held_out_tiles: TileDataset | None


def read_training_tiles(
    path_csv: Sequence[str],
    patch_data_path: Sequence[str],
    split: tuple[str, int],
    train_partitions: Sequence[str],
    tiles_per_slide: int,
    image_px: int,
    write_split: bool = True,
) -> TrainingTiles:
    """Return the tiles and profiles of a cohort, apart by donor.

    Args:
        path_csv, patch_data_path: expression tables and tile folders, one per tissue.
        split: file and seed of the donor split.
        train_partitions: "train", "val", "test": donors of these are trained on.
        tiles_per_slide: at most.
        image_px: side that tiles are resized to.
        write_split: keep the partition of new donors.

    Raises:
        UserError: as `read_cohort`; also when no slide of a training donor has tiles.
    """
    table = read_cohort(path_csv)
    partition = load_split(split[0], table.donors, split[1], write_split)
    training = np.array([partition[donor] in train_partitions for donor in table.donors])
    stores = find_tile_stores(patch_data_path, table.names)
    rows, held_out = (
        [row for row, name in enumerate(table.names) if name in stores and training[row] == side]
        for side in (True, False)
    )
    if not rows:
        raise UserError(f"no tile store of a training slide under {', '.join(patch_data_path)}")
    tiles, held_out_tiles = (
        TileDataset([stores[table.names[row]] for row in part], tiles_per_slide, image_px)
        if part
        else None
        for part in (rows, held_out)
    )
    return TrainingTiles(table, training, rows, held_out, tiles, held_out_tiles)


def check_training_tiles(
    inputs: TrainingTiles, genes: int, tiles_per_step: int, where: str
) -> None:
    """Raise a UserError unless there are so many genes and at least a step's tiles; `where` is
    the config."""
    if len(inputs.table.genes) != genes:
        found = f"the tables hold {len(inputs.table.genes)} genes"
        raise UserError(f"{where}: rna_features is {genes}, {found}")
    if len(inputs.tiles) < tiles_per_step:
        found = f"{len(inputs.tiles)} tiles, a step needs {tiles_per_step}"
        raise UserError(f"{where}: {found}")


def epoch_order(
    tiles: int, tiles_per_step: int, shuffled: bool, seed: int, epoch: int
) -> list[list[int]]:
    """Return the tile numbers of every step of an epoch; what does not fill a step is left out."""
    order = torch.arange(tiles)
    if shuffled:
        order = torch.randperm(tiles, generator=torch_generator(seed, "epoch", epoch))
    steps = tiles // tiles_per_step
    return order[: steps * tiles_per_step].view(steps, tiles_per_step).tolist()


class TileBatches:
    """Batches of tiles by number: from memory where all tiles fit, else by worker processes.

    Args:
        tiles: the dataset.
        workers: processes that decode tiles; 0: none.
        cache_mb: most memory for decoded tiles, 2**20 bytes.
        pinned: keep batches in page-locked memory, for a GPU.
    """

    def __init__(self, tiles: TileDataset, workers: int, cache_mb: int, pinned: bool) -> None:
        self.tiles, self.workers, self.pinned = tiles, workers, pinned
        self.pixels: Tensor | None = None
        if len(tiles) * tiles.image_px**2 * 3 <= cache_mb * 2**20:
            self.pixels = self.read_all()

    def read_all(self) -> Tensor:
        """Return all tiles, uint8 (N, px, px, 3)."""
        numbers = torch.arange(len(self.tiles)).split(READ_AT_ONCE)
        loader = self._loader([part.tolist() for part in numbers])
        bar = tqdm(loader, desc="tiles into memory", unit="batch", leave=False)
        return torch.cat([pixels for pixels, _ in bar])

    def __call__(self, order: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels uint8 (N, px, px, 3) and slide numbers (N,) of every step."""
        if self.pixels is None:
            yield from self._loader(order)
            return
        slides = torch.from_numpy(self.tiles.slide_numbers).long()
        for numbers in order:
            yield self.pixels[numbers], slides[numbers]

    def _loader(self, order: list[list[int]]) -> DataLoader:
        return DataLoader(
            self.tiles, batch_sampler=order, num_workers=self.workers, pin_memory=self.pinned
        )
