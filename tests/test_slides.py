import numpy as np
import pytest
from PIL import Image
from tiny_slides import BACKGROUND, NUCLEUS, STROMA, tissue_picture, write_slide

from data.artefacts import ink_mask
from data.slide_files import SlideError
from data.slides import Slide, slide_mpp
from data.tissue import (
    SlideMask,
    candidate_tiles,
    close_mask,
    is_low_contrast,
    kept_tiles,
    otsu_threshold,
    slide_mask,
    tissue_mask,
)

MPP, POWER = "openslide.mpp-x", "openslide.objective-power"
TIFF, UNIT = "tiff.XResolution", "tiff.ResolutionUnit"


@pytest.fixture(scope="module")
def picture():
    return tissue_picture()


@pytest.fixture(scope="module")
def slide_path(picture, tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slides") / "a.svs", picture)


@pytest.mark.parametrize(
    ("properties", "mpp", "key"),
    [
        ({MPP: "0.4990", POWER: "40"}, 0.499, MPP),
        ({POWER: "20"}, 0.5, POWER),
        ({TIFF: "50800", UNIT: "inch"}, 0.5, TIFF),
        ({TIFF: "40000", UNIT: "centimeter"}, 0.25, TIFF),
        ({MPP: "353", POWER: "20"}, 0.5, POWER),
        ({MPP: "x", POWER: "40"}, 0.25, POWER),
    ],
)
def test_resolution_comes_from_the_first_key_that_makes_sense(properties, mpp, key):
    found, source = slide_mpp(properties)
    assert found == pytest.approx(mpp)
    assert source == key


def test_override_wins_over_what_the_slide_says():
    assert slide_mpp({"openslide.mpp-x": "0.25"}, 0.5) == (0.5, "mpp_override")


def test_missing_resolution_names_the_keys_tried_and_the_slide(tmp_path, picture):
    path = write_slide(tmp_path / "bare.svs", picture[:256, :256], mpp=None)
    with pytest.raises(
        SlideError, match=r"bare\.svs: .*mpp-x absent.*objective-power absent.*XResolution"
    ):
        Slide(path)
    with Slide(path, mpp_override=0.5) as slide:
        assert slide.mpp == 0.5


def test_power_is_used_where_mpp_is_absent(tmp_path, picture):
    path = write_slide(tmp_path / "power.svs", picture[:256, :256], mpp=None, power=20)
    with Slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "openslide.objective-power")


@pytest.mark.parametrize("content", [b"", b"no slide at all", b"II*\0\x08\0\0\0\0\0"])
def test_file_that_is_no_slide_is_a_slide_error_naming_it(tmp_path, content):
    path = tmp_path / "broken.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"broken\.svs: not a slide"):
        Slide(path)


def test_coarsest_sufficient_level_is_read(slide_path):
    with Slide(slide_path) as slide:
        assert slide.level_mpps == [0.25, 1.0]
        assert [slide.level_for(mpp) for mpp in (0.25, 0.5, 0.99, 1.0, 4.0)] == [0, 0, 1, 1, 1]
        assert slide.level_for(0.246) == 0
        assert slide.grid(64, 0.5).source_px == 128
        assert slide.grid(64, 1.0).source_px == 64


def test_nothing_is_enlarged(slide_path):
    with (
        Slide(slide_path) as slide,
        pytest.raises(SlideError, match=r"coarser than the 0\.1 asked"),
    ):
        slide.grid(64, 0.1)


def test_nearly_right_resolution_is_not_resampled(tmp_path, picture):
    path = write_slide(tmp_path / "near.svs", picture[:512, :512], mpp=0.252)
    with Slide(path) as slide:
        grid = slide.grid(64, 0.5)
        assert (grid.source_px, grid.mpp) == (128, 0.504)


def test_partial_edge_tiles_are_left_out(slide_path):
    with Slide(slide_path) as slide:
        grid = slide.grid(100, 0.5)  # 2048 px at 0.25 hold 10.24 tiles of 200 px
        assert (grid.columns, grid.rows) == (10, 10)
        assert slide.place(grid, 9, 3) == (1800, 600)


def test_slide_smaller_than_a_tile_says_so(slide_path):
    with Slide(slide_path) as slide, pytest.raises(SlideError, match="smaller than one tile"):
        slide.grid(4096, 0.25)


def test_tile_is_the_area_average_of_its_pixels(slide_path, picture):
    with Slide(slide_path) as slide:
        grid = slide.grid(64, 0.5)
        tile = next(slide.read_tiles(grid, np.array([[5, 6]])))
    source = picture[640:768, 768:896].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(tile - source).max() <= 1


def test_strip_reading_equals_reading_one_by_one(slide_path):
    tiles = np.array([[4, 3], [4, 4], [4, 5], [5, 2], [5, 4], [6, 4]])
    with Slide(slide_path) as slide:
        for mpp in (0.25, 0.4, 0.5, 1.0):
            grid = slide.grid(48, mpp)
            together = list(slide.read_tiles(grid, tiles))
            apart = [next(slide.read_tiles(grid, tiles[[number]])) for number in range(len(tiles))]
            assert np.array_equal(together, apart)


def test_slides_of_20x_and_40x_give_tiles_of_the_same_scale(tmp_path, slide_path, picture):
    half = np.asarray(Image.fromarray(picture).reduce(2))
    other_path = write_slide(tmp_path / "b.svs", half, mpp=0.5)
    with Slide(slide_path) as fine, Slide(other_path) as coarse:
        tiles = np.array([[row, column] for row in (1, 2) for column in (1, 2)])
        for mpp in (0.5, 1.0, 2.0):
            pairs = [list(s.read_tiles(s.grid(64, mpp), tiles)) for s in (fine, coarse)]
            difference = np.abs(np.subtract(*pairs, dtype=float))
            assert difference.mean() < 3
        for mpp in (0.7, 1.6):
            grids = [s.grid(64, mpp).mpp for s in (fine, coarse)]
            assert grids == pytest.approx([mpp, mpp], rel=0.01)


def test_transparent_regions_show_the_background_colour(slide_path):
    with Slide(slide_path) as slide:
        beyond = slide.read(0, 2040, 2040, 64, 64)
    assert (beyond[20:, 20:] == 255).all()


def test_overview_has_the_scale_asked_for(slide_path):
    with Slide(slide_path) as slide:
        assert slide.overview(8.0).shape == (64, 64, 3)
        assert slide.overview(2.0).shape == (256, 256, 3)


def test_otsu_threshold_equals_exhaustive_search():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(60, 12, 500), rng.normal(180, 20, 300)]).astype(int)
    histogram = np.bincount(values, minlength=256)
    within = [
        np.var(values[values <= level]) * (values <= level).sum()
        + np.var(values[values > level]) * (values > level).sum()
        for level in range(values.min(), values.max())
    ]
    assert otsu_threshold(histogram) == values.min() + int(np.argmin(within))


def test_otsu_threshold_of_one_level_leaves_nothing_above_it():
    assert otsu_threshold(np.bincount([7] * 9, minlength=256)) == 7


def test_closing_fills_gaps_and_keeps_the_border():
    mask = np.ones((20, 30), bool)
    mask[8:11, 10:13] = False
    assert close_mask(mask, 3).all()
    alone = np.zeros((20, 30), bool)
    alone[10, 15] = True
    assert np.array_equal(close_mask(alone, 3), alone)


def test_mask_finds_the_tissue_and_nothing_else(slide_path):
    with Slide(slide_path) as slide:
        mask = tissue_mask(slide.overview(8.0))
    rows, columns = (np.mgrid[0:64, 0:64] + 0.5) * 8
    distance = np.hypot(rows - 256, columns - 256)
    assert mask[distance < 190].mean() > 0.99
    assert not mask[distance > 220].any()


def test_contrast_rule_follows_its_definition():
    flat = np.full((50, 50, 3), 200, np.uint8)
    flat[0, 0] = 0  # below the first percentile
    assert is_low_contrast(flat)
    step = flat.copy()
    step[:, 25:] = 186  # 14 of 255 is 5.5 %
    assert not is_low_contrast(step)
    step[:, 25:] = 189
    assert is_low_contrast(step)


@pytest.mark.parametrize("seed", range(30))
def test_contrast_rule_is_exact_for_large_tiles(seed):
    rng = np.random.default_rng(seed)
    span, share = rng.uniform(4, 40), rng.choice([0.005, 0.02, 0.1, 0.4])
    grey = np.full((97, 130), 180.0)
    grey[rng.random(grey.shape) < share] -= span
    grey[rng.random(grey.shape) < share] += rng.uniform(0, 10)
    pixels = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    low, high = np.percentile(pixels[..., 0], (1, 99))
    assert is_low_contrast(pixels) == ((high - low) / 255 < 0.05)


def test_pen_is_ink_and_stained_tissue_is_not():
    colours = {"blue": (60, 90, 190), "green": (70, 150, 90), STROMA: STROMA, NUCLEUS: NUCLEUS}
    found = [ink_mask(np.full((4, 4, 3), colour, np.uint8)).all() for colour in colours.values()]
    assert found == [True, True, False, False]
    assert not ink_mask(np.full((4, 4, 3), BACKGROUND, np.uint8)).any()


def test_tiles_under_ink_are_no_candidates(slide_path):
    with Slide(slide_path) as slide:
        overview = slide.overview(8.0).copy()
        overview[:, 30:34] = (60, 90, 190)
        grid = slide.grid(64, 0.5)
        with_ink = candidate_tiles(slide, grid, slide_mask(overview, keep_ink=True), "corner")
        without = candidate_tiles(slide, grid, slide_mask(overview), "corner")
    assert {6, 7, 8, 9} & set(with_ink.tiles[:, 1])
    assert not {7, 8} & set(without.tiles[:, 1])


def test_anchor_decides_which_point_must_be_tissue(slide_path):
    tissue = np.zeros((64, 64), bool)
    tissue[8:12, 8:12] = True  # one tile of 32 um
    mask = SlideMask(tissue, np.zeros_like(tissue))
    with Slide(slide_path) as slide:
        grid = slide.grid(64, 0.5)
        corner = candidate_tiles(slide, grid, mask, "corner")
        assert corner.tiles.tolist() == [[2, 2]]
        assert corner.tissue_fraction.tolist() == [1.0]
        shifted = SlideMask(np.roll(tissue, 1, (0, 1)), mask.artefacts)
        assert candidate_tiles(slide, grid, shifted, "corner").tiles.tolist() == [[3, 3]]
        centre = candidate_tiles(slide, grid, shifted, "centre")
        assert centre.tiles.tolist() == [[2, 2]]
        assert centre.tissue_fraction.tolist() == [9 / 16]


def tiles_of(slide, maximum, rule="slide", seed=1):
    grid = slide.grid(64, 0.5)
    candidates = candidate_tiles(slide, grid, slide_mask(slide.overview(8.0)), "corner")
    generator = np.random.default_rng(seed)
    return list(kept_tiles(slide, grid, candidates, maximum, 0.2, rule, generator))


def test_fewer_tiles_are_a_subset_of_more(slide_path):
    with Slide(slide_path) as slide:
        every, few = (tiles_of(slide, maximum) for maximum in (1000, 20))
    assert len(few) == 20
    assert len(every) > 60
    places = {(tile.x, tile.y) for tile in every}
    assert {(tile.x, tile.y) for tile in few} < places
    assert len(places) == len(every)


def test_kept_tiles_are_tissue(slide_path):
    with Slide(slide_path) as slide:
        tiles = tiles_of(slide, 1000)
    for tile in tiles:
        stained = (tile.pixels.max(axis=2).astype(int) - tile.pixels.min(axis=2)) > 35
        assert stained.mean() > 0.1
        assert abs(stained.mean() - tile.tissue_fraction) < 0.35


def test_published_rule_refuses_even_tissue_with_few_nuclei(tmp_path):
    rng = np.random.default_rng(0)
    even = np.clip(np.array(STROMA) + rng.normal(0, 3, (1024, 1024, 3)), 0, 255).astype(np.uint8)
    for row, column in rng.integers(0, 1000, (300, 2)):
        even[row : row + 16, column : column + 16] = NUCLEUS
    even[:128] = even[-128:] = even[:, :128] = even[:, -128:] = BACKGROUND
    with Slide(write_slide(tmp_path / "even.svs", even)) as slide:
        ours, published = (tiles_of(slide, 1000, rule) for rule in ("slide", "own"))
    assert len(ours) >= 36
    assert len(published) < len(ours)
