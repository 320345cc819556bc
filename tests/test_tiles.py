import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.tiles import (
    OPEN_FILES,
    Tile,
    TileDataset,
    _open,
    find_tile_store,
    open_tile_store,
    slide_stem,
    store_path,
    write_tile_store,
)
from runtime.errors import UserError


def tile_of(number: int, px: int = 16) -> Tile:
    pixels = np.random.default_rng(number).integers(0, 256, (px, px, 3), dtype=np.uint8)
    return Tile(number * px, 7, number / 100, pixels)


def make_store(folder, slide="SIM-0001-0625.svs", count=12, seed=99):
    path = store_path(folder, slide)
    written = write_tile_store(path, slide, map(tile_of, range(count)), 16, 0.5, {"a": 1}, seed)
    assert written == count
    return path


def test_store_lies_where_the_pipeline_expects_it(tmp_path):
    path = make_store(tmp_path)
    assert path == tmp_path / "SIM-0001-0625.svs" / "SIM-0001-0625.zip"
    with zipfile.ZipFile(path) as archive:
        assert all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
        assert {"index.csv", "store.json", "0_7.png"} <= set(archive.namelist())
        assert archive.testzip() is None


def test_tiles_come_back_unchanged_with_red_and_blue_in_place(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    path = store_path(tmp_path, "a.svs")
    write_tile_store(path, "a.svs", [(3, 4, 1.0, red)], 8, 0.5, {})
    assert (open_tile_store(path).read(0) == red).all()


def test_every_index_row_belongs_to_its_tile(tmp_path):
    store = open_tile_store(make_store(tmp_path))
    assert list(store.index.columns) == ["name", "x", "y", "mpp", "tissue_fraction"]
    assert list(store.index.name) == store.names
    for number, row in store.index.iterrows():
        tile = tile_of(row.x // 16)
        assert (row.y, row.mpp, row.tissue_fraction) == (7, 0.5, tile.tissue_fraction)
        assert (store.read(number) == tile.pixels).all()
    assert store.info["slide"] == "SIM-0001-0625.svs"
    assert store.info["a"] == 1


def test_same_arguments_give_the_same_bytes(tmp_path):
    one, other = (make_store(tmp_path / part).read_bytes() for part in "ab")
    assert one == other


def test_index_is_shuffled_by_the_seed(tmp_path):
    plain = open_tile_store(make_store(tmp_path / "a", seed=None)).names
    mixed = open_tile_store(make_store(tmp_path / "b", seed=1)).names
    other = open_tile_store(make_store(tmp_path / "c", seed=2)).names
    assert plain == [f"{16 * number}_7.png" for number in range(12)]
    assert sorted(mixed) == sorted(plain)
    assert len({tuple(names) for names in (plain, mixed, other)}) == 3


def test_no_tiles_write_no_store(tmp_path):
    path = store_path(tmp_path, "a.svs")
    assert write_tile_store(path, "a.svs", [], 16, 0.5, {}) == 0
    assert not path.exists()


def test_failure_half_way_leaves_nothing(tmp_path):
    def tiles():
        yield tile_of(0)
        raise UserError("slide damaged")

    path = store_path(tmp_path, "a.svs")
    with pytest.raises(UserError, match="slide damaged"):
        write_tile_store(path, "a.svs", tiles(), 16, 0.5, {})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["SIM-0001-0625.svs", "SIM-0001-0625"])
def test_store_is_found_with_and_without_suffix(tmp_path, name):
    path = make_store(tmp_path)
    assert find_tile_store(tmp_path, name) == path
    assert find_tile_store(tmp_path, "SIM-0002-0625.svs") is None


def test_dots_in_a_sample_name_are_no_suffix():
    assert slide_stem("run1.sample2") == "run1.sample2"
    assert slide_stem("a.b.SVS") == "a.b"


@pytest.mark.parametrize("layout", ["{stem}.svs", "{stem}"])
def test_folder_of_images_is_a_store(tmp_path, layout):
    folder = tmp_path / layout.format(stem="HER2ST_B4")
    folder.mkdir()
    for number in range(5):
        Image.fromarray(tile_of(number).pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    assert find_tile_store(tmp_path, "HER2ST_B4") == folder
    store = open_tile_store(folder)
    assert sorted(store.names) == [f"{number}.png" for number in range(5)]
    first = int(store.names[0].removesuffix(".png"))
    assert (store.read(0) == tile_of(first).pixels).all()
    assert store.index.x.isna().all()
    assert store.info == {}


def test_zip_without_index_and_compressed_is_a_store(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            buffer = io.BytesIO()
            Image.fromarray(tile_of(number).pixels).save(buffer, "BMP")
            archive.writestr(f"tiles/{number}.bmp", buffer.getvalue())
    store = open_tile_store(find_tile_store(tmp_path, "a.svs"))
    number = int(store.names[1].removeprefix("tiles/").removesuffix(".bmp"))
    assert (store.read(1) == tile_of(number).pixels).all()


def test_missing_store_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="tile store not found"):
        open_tile_store(tmp_path / "no.zip")


def test_empty_store_is_one_clear_line(tmp_path):
    (tmp_path / "a.svs").mkdir()
    with pytest.raises(UserError, match="empty tile store"):
        open_tile_store(tmp_path / "a.svs")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("index.csv", "name\n")
    with pytest.raises(UserError, match="empty tile store"):
        open_tile_store(tmp_path / "b.zip")


@pytest.mark.parametrize("kept", [0, 100, 0.5, -30])
def test_truncated_store_is_one_clear_line(tmp_path, kept):
    path = make_store(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="damaged tile store .*run extract_tiles.py again"):
        open_tile_store(path)


def test_damaged_tile_is_named(tmp_path):
    path = make_store(tmp_path)
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    store = open_tile_store(path)
    with pytest.raises(UserError, match=r"tile 0_7\.png is damaged \(wrong checksum\)"):
        store.read(store.names.index("0_7.png"))
    assert store.read(store.names.index("16_7.png")).shape == (16, 16, 3)


def test_rewritten_store_is_read_anew(tmp_path):
    path = make_store(tmp_path, count=3)
    open_tile_store(path).read(0)
    replacement = make_store(tmp_path / "new", count=5)
    os.utime(replacement, ns=(1, 1))
    os.replace(replacement, path)
    store = open_tile_store(path)
    assert len(store) == 5
    assert (store.read(0) == tile_of(int(store.index.x[0]) // 16).pixels).all()


def test_dataset_gives_pixels_and_the_number_of_the_store(tmp_path):
    paths = [make_store(tmp_path, f"SIM-000{number}-0625.svs", 4 + number) for number in range(3)]
    dataset = TileDataset(paths, max_tiles=5, image_px=8)
    assert len(dataset) == 4 + 5 + 5
    pixels, slide = dataset[4]
    assert (pixels.shape, pixels.dtype, slide) == ((8, 8, 3), torch.uint8, 1)
    assert dataset.slide_numbers.tolist() == [0] * 4 + [1] * 5 + [2] * 5
    assert dataset[-1][1] == 2
    store = open_tile_store(paths[2])
    assert dataset.name_of(13) == f"{paths[2]}/{store.names[4]}"
    assert (TileDataset(paths, 5)[13][0].numpy() == store.read(4)).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_read_what_the_parent_reads(tmp_path, method):
    paths = [make_store(tmp_path, f"SIM-000{number}-0625.svs") for number in range(3)]
    dataset = TileDataset(paths)
    here = torch.stack([dataset[number][0] for number in range(len(dataset))])
    loader = DataLoader(dataset, 5, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), here)
    assert torch.cat([slides for _, slides in batches]).tolist() == dataset.slide_numbers.tolist()


def test_open_files_stay_bounded_with_many_stores(tmp_path):
    paths = [make_store(tmp_path, f"S-{number}.svs", 1) for number in range(OPEN_FILES + 20)]
    _open.cache_clear()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    dataset = TileDataset(paths)
    for number in range(len(dataset)):
        dataset[number]
    assert _open.cache_info().currsize == OPEN_FILES
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES + 2


def test_tile_costs_few_bytes(tmp_path):
    path = make_store(tmp_path, count=400)
    few = len(pickle.dumps(TileDataset([path], max_tiles=100)))
    many = len(pickle.dumps(TileDataset([path])))
    assert (many - few) / 300 < 64


def test_store_json_holds_plain_values_only(tmp_path):
    with zipfile.ZipFile(make_store(tmp_path)) as archive:
        info = json.loads(archive.read("store.json"))
    assert info["format"] == "rna-gan-tiles/1"
    assert (info["tile_px"], info["mpp"]) == (16, 0.5)
