import json

import numpy as np
import pytest
from PIL import Image

from data.mask_files import find_mask, read_mask, write_geojson
from data.slide_files import SlideError

SIZE = (8000, 4000)


@pytest.fixture
def mask():
    mask = np.zeros((50, 100), bool)
    mask[10:30, 20:60] = True
    mask[15:20, 30:40] = False  # a hole
    mask[40:50, 90:100] = True  # at the border
    return mask


def test_geojson_has_a_ring_per_region_and_hole_in_level_0_pixels(tmp_path, mask):
    write_geojson(tmp_path / "a.geojson", mask, SIZE)
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    rings = [feature["geometry"]["coordinates"] for feature in content["features"]]
    assert sorted(len(part) for part in rings) == [1, 2]
    for feature, part in zip(content["features"], rings, strict=True):
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "Tissue"
        assert all(ring[0] == ring[-1] for ring in part)
    large = np.array(next(part for part in rings if len(part) == 2)[0])
    assert large.min(axis=0).tolist() == [1600, 800]  # 20 and 10 pixels of 80 px
    assert large.max(axis=0).tolist() == [4800, 2400]


def test_geojson_is_read_back_as_the_same_mask(tmp_path, mask):
    write_geojson(tmp_path / "a.geojson", mask, SIZE)
    again = read_mask(tmp_path / "a.geojson", SIZE, mask.shape)
    assert (again != mask).mean() < 0.003
    finer = read_mask(tmp_path / "a.geojson", SIZE, (200, 400))
    assert (finer[2::4, 2::4] != mask).mean() < 0.003


def test_empty_mask_is_geojson_without_a_feature(tmp_path):
    write_geojson(tmp_path / "a.geojson", np.zeros((5, 5), bool), SIZE)
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
    assert not read_mask(tmp_path / "a.geojson", SIZE, (5, 5)).any()


def test_multipolygons_and_bare_geometries_are_read(tmp_path):
    squares = [[[[x, 0], [x + 800, 0], [x + 800, 4000], [x, 4000], [x, 0]]] for x in (0, 4000)]
    for content in (
        {"type": "MultiPolygon", "coordinates": squares},
        [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": s}} for s in squares],
    ):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        assert read_mask(tmp_path / "a.geojson", SIZE, (50, 100)).mean() == pytest.approx(0.2, 0.1)


def test_image_is_tissue_where_it_is_not_black(tmp_path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).resize((200, 100), 0).save(tmp_path / "a.png")
    assert (read_mask(tmp_path / "a.png", SIZE, mask.shape) == mask).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.geojson", b"{", "not GeoJSON"),
        ("a.geojson", b'{"type": "Point", "coordinates": [1, 2]}', "polygons are needed"),
        ("a.geojson", b'{"type": "Polygon", "coordinates": [[["x", "y"]]]}', "not GeoJSON"),
        ("a.png", b"no image", "cannot be read"),
    ],
)
def test_file_that_is_no_mask_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=rf"{name}.*{words}"):
        read_mask(tmp_path / name, SIZE, (50, 100))


def test_image_of_another_shape_is_refused(tmp_path):
    Image.new("L", (100, 100), 255).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=r"100 x 100 px, not the shape of the slide \(8000 x 4000"):
        read_mask(tmp_path / "a.png", SIZE, (50, 100))


def test_mask_is_found_by_the_slides_name_or_stem(tmp_path):
    for name in ("a.svs.geojson", "b.png"):
        (tmp_path / name).write_bytes(b"")
    assert find_mask(tmp_path, "a.svs").name == "a.svs.geojson"
    assert find_mask(tmp_path, "b.svs").name == "b.png"
    assert find_mask(tmp_path / "b.png", "anything.svs").name == "b.png"
    with pytest.raises(SlideError, match=r"c\.svs: no mask in"):
        find_mask(tmp_path, "c.svs")
