import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.tile_export import export_images, export_stylegan
from data.tiles import Tile, open_tile_store, store_path, write_tile_store
from runtime.errors import UserError


def stores(folder, px=16, quality=None):
    opened = {}
    for slide in ("a.svs", "b.svs"):
        draw = np.random.default_rng(len(slide) + ord(slide[0]))
        tiles = [
            Tile(px * n, 0, 0.5, draw.integers(0, 256, (px, px, 3), dtype=np.uint8))
            for n in range(3)
        ]
        path = store_path(folder, slide)
        write_tile_store(path, slide, tiles, px, 0.5, {}, 1, quality)
        opened[slide] = open_tile_store(path)
    return opened


def test_stylegan_zip_has_the_layout_its_tools_read(tmp_path):
    opened = stores(tmp_path)
    labels = {"a.svs": [0.5, -1.25], "b.svs": [1.0, 1e-9]}
    assert export_stylegan(tmp_path / "out.zip", opened, labels) == 6
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        assert all(member.compress_type == 0 for member in archive.infolist())
        names = [name for name in archive.namelist() if name != "dataset.json"]
        assert names == [f"00000/img{number:08d}.png" for number in range(6)]
        # As training/dataset.py does: a dict by name, then an array, float32 where it has 2 axes.
        listed = dict(json.loads(archive.read("dataset.json"))["labels"])
        vectors = np.array([listed[name.replace("\\", "/")] for name in names])
        assert vectors.ndim == 2
        assert vectors.tolist() == [labels["a.svs"]] * 3 + [[1.0, 0.0]] * 3
        for number, name in enumerate(names):
            store = opened["a.svs" if number < 3 else "b.svs"]
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert (np.asarray(image) == store.read(number % 3)).all()


def test_stylegan_zip_without_labels_says_null_and_is_the_same_each_time(tmp_path):
    opened = stores(tmp_path, quality=90)
    for name in ("one.zip", "two.zip"):
        export_stylegan(tmp_path / name, opened, None)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        assert "00000/img00000000.jpg" in archive.namelist()


def test_tiles_that_stylegan_cannot_train_on_are_refused(tmp_path):
    with pytest.raises(UserError, match="48 x 48 px; StyleGAN needs squares"):
        export_stylegan(tmp_path / "out.zip", stores(tmp_path, px=48), None)
    mixed = stores(tmp_path / "a") | {"c.svs": stores(tmp_path / "b", px=32)["a.svs"]}
    with pytest.raises(UserError, match="32 x 32 px"):
        export_stylegan(tmp_path / "out.zip", mixed, None)
    with pytest.raises(UserError, match=r"b\.svs: no label"):
        export_stylegan(tmp_path / "out.zip", stores(tmp_path), {"a.svs": [1.0]})
    assert not (tmp_path / "out.zip").exists()


def test_damaged_tile_stops_the_export_and_leaves_nothing(tmp_path):
    opened = stores(tmp_path)
    path = opened["b.svs"].path
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    opened["b.svs"] = open_tile_store(path)
    with pytest.raises(UserError, match=r"tile .* is damaged"):
        export_stylegan(tmp_path / "out.zip", opened, None)
    with pytest.raises(UserError, match=r"tile .* is damaged"):
        export_images(tmp_path / "images", opened)
    assert not (tmp_path / "out.zip").exists()
    assert not (tmp_path / "images").exists()
    assert not list(tmp_path.glob(".*"))


def test_images_are_files_with_a_table_of_all(tmp_path):
    opened = stores(tmp_path / "tiles")
    assert export_images(tmp_path / "images", opened) == 6
    table = pd.read_csv(tmp_path / "images/tiles.csv")
    assert table.slide.tolist() == ["a.svs"] * 3 + ["b.svs"] * 3
    for number, row in table.iterrows():
        with Image.open(tmp_path / "images" / row.file) as image:
            assert (np.asarray(image) == opened[row.slide].read(number % 3)).all()
        assert row.file == f"{row.slide}/{row.x}_{row.y}.png"
    with pytest.raises(UserError, match="images: exists"):
        export_images(tmp_path / "images", opened)
