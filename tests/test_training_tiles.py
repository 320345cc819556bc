"""Training tiles: apart by donor, the same batches from memory as from workers."""

import torch

from data.training import TileBatches, epoch_order, read_training_tiles


def read(**changes):
    arguments = {
        "path_csv": ["lung.csv"],
        "patch_data_path": ["tiles/lung"],
        "split": ("split.csv", 99),
        "train_partitions": ["train"],
        "tiles_per_slide": 5,
        "image_px": 32,
    }
    return read_training_tiles(**arguments | changes)


def test_no_donor_is_on_both_sides_and_all_slides_are_on_one(cohort):
    inputs = read()
    donors = inputs.table.donors
    assert not {donors[row] for row in inputs.rows} & {donors[row] for row in inputs.held_out}
    assert sorted(inputs.rows + inputs.held_out) == list(range(len(inputs.table)))
    assert len(inputs.tiles) == 5 * len(inputs.rows)
    everyone = read(train_partitions=["train", "val", "test"])
    assert everyone.held_out_tiles is None


def test_batches_from_memory_equal_those_of_workers(cohort):
    tiles = read().tiles
    order = epoch_order(len(tiles), 4, True, seed=3, epoch=1)
    kept = list(TileBatches(tiles, 0, cache_mb=10, pinned=False)(order))
    read_again = list(TileBatches(tiles, 1, cache_mb=0, pinned=False)(order))
    for (pixels, slides), (other_pixels, other_slides) in zip(kept, read_again, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(slides, other_slides.long())


def test_an_epoch_shows_every_tile_once_but_the_rest():
    order = epoch_order(26, 4, True, seed=3, epoch=0)
    numbers = [number for step in order for number in step]
    assert len(numbers) == len(set(numbers)) == 24
    assert order != epoch_order(26, 4, True, seed=3, epoch=1)
    assert epoch_order(8, 4, False, seed=3, epoch=0) == [[0, 1, 2, 3], [4, 5, 6, 7]]
