import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_slides import NUCLEUS, STROMA, tissue_picture

from data.artefacts import blur_of, fold_mask
from data.tissue import otsu_mask


def tile(sigma_px=0.0):
    picture = Image.fromarray(tissue_picture(side_um=128, mpp=0.5)[40:200, 40:200])
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma_px)))


def test_blur_grows_with_the_blur_and_not_with_the_contrast():
    values = [blur_of(tile(sigma)) for sigma in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert values[0] < 0.4 < 0.5 < values[2]
    faint = (255 - (255 - tile(1.0).astype(int)) // 3).astype(np.uint8)
    assert blur_of(faint) == pytest.approx(values[1], abs=0.05)


def test_blur_of_a_step_follows_its_definition():
    # Columns 0 and 200, step of 200 between two of them: one difference of 200 in each row, 200/11
    # of it left after a box of 11 px.
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    along_rows = 1 - (200 - 200 / 11) / 200
    assert blur_of(np.swapaxes(pixels, 0, 1)) == 1.0  # no difference along one axis at all
    pixels[15:] = 200 - pixels[15:]
    assert blur_of(pixels) == pytest.approx(along_rows, abs=0.12)


def test_tile_without_any_difference_counts_as_blurred():
    assert blur_of(np.full((32, 32, 3), 180, np.uint8)) == 1.0


@pytest.fixture
def section():
    rng = np.random.default_rng(0)
    pixels = np.clip(np.array(STROMA) + rng.normal(0, 5, (120, 120, 3)), 0, 255)
    for row, column in rng.integers(2, 116, (150, 2)):
        pixels[row : row + 1, column : column + 1] = NUCLEUS
    return pixels.astype(np.uint8)


def test_fold_is_found_where_tissue_lies_double_and_nowhere_else(section):
    tissue = np.ones(section.shape[:2], bool)
    assert not fold_mask(section, tissue, 8.0).any()
    folded = section.astype(float)
    folded[50:60] = folded[50:60] ** 2 / 243  # twice the optical density
    found = fold_mask(folded.astype(np.uint8), tissue, 8.0)
    assert found[51:59].mean() > 0.9
    # Dark cells that touch the fold go with it.
    assert found[:47].mean() < 0.02
    assert found[63:].mean() < 0.02


def test_small_dark_spots_are_no_folds(section):
    dark = section.copy()
    dark[40:44, 40:44] = NUCLEUS  # 1024 um2
    assert not fold_mask(dark, np.ones(dark.shape[:2], bool), 8.0).any()


def test_slide_without_tissue_has_no_fold(section):
    assert not fold_mask(section, np.zeros(section.shape[:2], bool), 8.0).any()


def test_otsu_mask_is_the_darker_class():
    pixels = np.full((40, 50, 3), 243, np.uint8)
    pixels[10:30, 10:40] = STROMA
    mask = otsu_mask(pixels)
    assert mask[10:30, 10:40].all()
    assert mask.sum() == 600
    assert not otsu_mask(np.full((40, 50, 3), 243, np.uint8)).any()
