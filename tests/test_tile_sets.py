"""Real tiles are drawn over all slides, without repeats, and donors never face themselves."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.tile_sets import (
    StoredTiles,
    disjoint_donor_draws,
    donor_halves,
    draw_tiles,
    open_images,
    store_digest,
    stored_set,
)
from data.tiles import open_tile_store, write_tile_store


@pytest.fixture
def stores(tmp_path):
    """Three slides of three donors, with 4, 6 and 8 tiles of 16 px."""
    found = []
    for donor, count in enumerate((4, 6, 8)):
        draw = np.random.default_rng(donor)
        tiles = [
            (16 * number, 0, 1.0, draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            for number in range(count)
        ]
        path = tmp_path / f"SIM-{donor:04d}-0625.zip"
        write_tile_store(path, path.stem, tiles, 16, 1.0, {}, seed=0)
        found.append(StoredTiles(open_tile_store(path), path.stem, f"SIM-{donor:04d}", 8))
    return found


def pool_of(stores):
    return [(store, index) for store in stores for index in range(len(store))]


def test_tiles_come_at_the_size_asked_for(stores):
    tiles = list(stores[0].read([2, 0]))
    assert [tile.shape for tile in tiles] == [(8, 8, 3)] * 2
    assert np.array_equal(tiles[1], next(stores[0].read([0])))
    assert stores[0].encodings() == {"png"}


def test_draws_share_no_tile_while_the_pool_lasts():
    draws = draw_tiles(range(20), 5, 4, np.random.default_rng(0))
    assert sorted(tile for draw in draws for tile in draw) == list(range(20))


def test_draws_of_a_short_pool_repeat_no_tile_within_a_draw():
    draws = draw_tiles(range(12), 5, 4, np.random.default_rng(0))
    assert all(len(set(draw)) == 5 for draw in draws)
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_pool_smaller_than_the_sample_is_used_whole():
    assert draw_tiles(range(3), 5, 2, np.random.default_rng(0)) == [[0, 1, 2]] * 2


def test_draws_reach_every_slide(stores):
    draw = draw_tiles(pool_of(stores), 15, 2, np.random.default_rng(0))[0]
    assert {store.slide for store, _ in draw} == {store.slide for store in stores}


def test_donor_halves_share_no_donor_and_balance_the_tiles():
    donors = np.repeat([f"SIM-{number:04d}" for number in range(10)], 7)
    one, two = donor_halves(donors, np.random.default_rng(0))
    assert not set(donors[one]) & set(donors[two])
    assert len(one) == len(two) == 35


def test_disjoint_donor_draws_have_equal_sizes_and_no_common_donor(stores):
    sides = disjoint_donor_draws(pool_of(stores), 5, 6, seed=1)
    for one, two in zip(*sides, strict=True):
        assert len(one) == len(two) <= 5
        assert not {store.donor for store, _ in one} & {store.donor for store, _ in two}
    assert disjoint_donor_draws(pool_of(stores[:1]), 5, 6, seed=1) is None


def test_digest_changes_with_a_tile_and_not_with_the_place(stores, tmp_path):
    store = stores[0].store
    moved = tmp_path / "elsewhere.zip"
    moved.write_bytes(store.path.read_bytes())
    assert store_digest(open_tile_store(moved)) == store_digest(store)
    with zipfile.ZipFile(store.path) as old, zipfile.ZipFile(moved, "w") as new:
        for number, name in enumerate(old.namelist()):
            new.writestr(name, old.read(name) if number else old.read(old.namelist()[1]))
    assert store_digest(open_tile_store(moved)) != store_digest(store)


def test_digest_of_a_commented_zip_is_of_the_whole_file(stores):
    before = store_digest(stores[0].store)
    with zipfile.ZipFile(stores[0].store.path, "a") as archive:
        archive.comment = b"a comment"
    assert store_digest(open_tile_store(stores[0].store.path)) != before


def test_digest_of_a_folder_changes_with_an_image(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    before = store_digest(open_tile_store(tmp_path))
    assert before == store_digest(open_tile_store(tmp_path))
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert store_digest(open_tile_store(tmp_path)) != before


def test_folder_of_folders_is_one_source_a_class_and_a_zip_tells_classes_by_its_folders(tmp_path):
    for label in ("lung", "brain"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (8, 8)).save(tmp_path / "set" / label / f"{name}.png")
    sources = open_images(tmp_path / "set", None)
    assert [(source.label_of(0), len(source)) for source in sources] == [("brain", 3), ("lung", 3)]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "set"))
    (source,) = open_images(tmp_path / "set.zip", 4)
    assert sorted(source.label_of(k) for k in range(6)) == ["brain"] * 3 + ["lung"] * 3
    assert next(source.read([0])).shape == (4, 4, 3)


def test_a_set_tells_whether_its_tiles_went_through_jpeg(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert stored_set("x", open_images(tmp_path, None), 5, 2, 1, {}).lossy() == {False}
    Image.new("RGB", (8, 8)).save(tmp_path / "b.JPG")
    assert stored_set("x", open_images(tmp_path, None), 5, 2, 1, {}).lossy() == {False, True}
