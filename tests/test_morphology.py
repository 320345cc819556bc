"""Morphology: closed form on drawn discs, then the known factors of simulated donors."""

import numpy as np
import pytest

from data.synthetic_canvas import EOSIN, HEMATOXYLIN, random_staining
from data.synthetic_tissue import FACTOR_RANGES, TISSUES, TissueFactors, draw_section
from data.synthetic_truth import spread_factors
from metrics.morphology import (
    morphology_of_tiles,
    morphology_per_tile,
    optical_density,
    stain_concentrations,
)
from runtime.seeds import numpy_generator

DONORS = 16
REGION_PX = 1024
DISC_RADIUS_PX = 4
LATTICE = [(row, column) for row in (8, 24, 40, 56) for column in (8, 24, 40, 56)]


def cut(picture: np.ndarray, tile_px: int, shrink: int) -> np.ndarray:
    """Return the tiles of a picture (N, tile_px, tile_px, 3) averaged over `shrink` px."""
    side = len(picture) // shrink
    small = picture.reshape(side, shrink, side, shrink, 3).mean(axis=(1, 3)).round()
    count = side // tile_px
    tiles = small.reshape(count, tile_px, count, tile_px, 3).swapaxes(1, 2)
    return tiles.reshape(-1, tile_px, tile_px, 3).astype(np.uint8)


def coloured(hematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """Return tiles uint8 (N, H, W, 3) of stain concentrations (N, H, W)."""
    density = hematoxylin[..., None] * HEMATOXYLIN + eosin[..., None] * EOSIN
    return (243 * np.exp(-density)).round().astype(np.uint8)


def discs(centres: list[tuple[int, int]]) -> np.ndarray:
    """Return one tile of pink tissue with a blue disc of DISC_RADIUS_PX at each centre."""
    y, x = np.mgrid[:64, :64]
    inside = np.zeros((64, 64), bool)
    for row, column in centres:
        inside |= (y - row) ** 2 + (x - column) ** 2 <= DISC_RADIUS_PX**2
    return coloured(np.where(inside, 1.4, 0.05)[None], np.full((1, 64, 64), 0.4))


def test_known_discs_are_counted_and_sized():
    found = morphology_of_tiles(discs(LATTICE), mpp=1.0)
    assert found.nuclear_density == pytest.approx(16 / 64**2 * 1e6)
    assert found.nuclear_diameter_um == pytest.approx(2 * DISC_RADIUS_PX, rel=0.1)
    assert found.airspace_fraction == 0


def test_touching_discs_are_counted_apart():
    found = morphology_of_tiles(discs([(32, 24), (32, 32), (16, 50)]), mpp=1.0)
    assert found.nuclear_density * 64**2 / 1e6 == pytest.approx(3)


def test_resolution_does_not_change_the_measure():
    coarse = discs(LATTICE)
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(
        morphology_of_tiles(fine, mpp=0.5), morphology_of_tiles(coarse, mpp=1.0), rtol=1e-5
    )


def test_half_a_tile_of_glass_is_half_airspace_and_does_not_dilute_density():
    tile = discs([centre for centre in LATTICE if centre[1] < 32])
    tile[:, :, 32:] = 243
    found = morphology_of_tiles(tile, mpp=1.0)
    assert found.airspace_fraction == pytest.approx(0.5, abs=0.02)
    assert found.nuclear_density == pytest.approx(16 / 64**2 * 1e6, rel=0.05)


def test_stain_ratio_follows_the_stains():
    tile = discs(LATTICE)
    hematoxylin, eosin = stain_concentrations(optical_density(tile))
    stronger = morphology_of_tiles(coloured(hematoxylin * 1.3, eosin), mpp=1.0).stain_ratio
    ratio = morphology_of_tiles(tile, mpp=1.0).stain_ratio
    assert stronger / ratio == pytest.approx(1.3, rel=0.05)


def test_stain_concentrations_undo_the_colouring():
    hematoxylin, eosin = np.random.default_rng(0).uniform(0.1, 0.8, (2, 1, 8, 8))
    found = stain_concentrations(optical_density(coloured(hematoxylin, eosin)))
    np.testing.assert_allclose(found[0], hematoxylin, atol=0.03)
    np.testing.assert_allclose(found[1], eosin, atol=0.03)


@pytest.mark.parametrize("level", [0, 128, 243, 255])
def test_a_uniform_tile_is_measured_without_a_crash(level):
    tiles = np.full((3, 64, 64, 3), level, np.uint8)
    found = morphology_of_tiles(tiles, mpp=1.0)
    if level <= 128:  # grey and dark as ink
        assert np.isnan(found).all()
    if level >= 243:
        assert found.airspace_fraction == 1
        assert np.isnan(found.nuclear_density)
        assert np.isnan(found.nuclear_diameter_um)
        assert np.isnan(found.stain_ratio)


def test_tissue_without_nuclei_has_density_zero():
    tiles = coloured(np.full((2, 64, 64), 0.05), np.full((2, 64, 64), 0.4))
    found = morphology_of_tiles(tiles, mpp=1.0)
    assert found.nuclear_density == 0
    assert np.isnan(found.nuclear_diameter_um)


def test_tiles_are_measured_one_by_one():
    tiles = np.concatenate([discs(LATTICE), discs(LATTICE[:4]), np.full((1, 64, 64, 3), 243)])
    found = morphology_per_tile(tiles.astype(np.uint8), mpp=1.0)
    np.testing.assert_allclose(found.nuclear_density[:2] * 64**2 / 1e6, [16, 4])
    assert np.isnan(found.nuclear_density[2])
    np.testing.assert_allclose(found.airspace_fraction, [0, 0, 1])


@pytest.mark.parametrize("ink", [(40, 60, 165), (35, 120, 75), (35, 35, 42)])
def test_ink_is_neither_tissue_nor_nucleus(ink):
    inked = np.concatenate([discs(LATTICE), discs(LATTICE)])
    inked[1, :, :40] = ink
    clean, found = morphology_of_tiles(inked[:1], mpp=1.0), morphology_of_tiles(inked, mpp=1.0)
    assert found.nuclear_density == pytest.approx(clean.nuclear_density, rel=0.1)
    assert found.nuclear_diameter_um == pytest.approx(clean.nuclear_diameter_um, rel=0.1)
    assert found.airspace_fraction == 0


def test_glass_that_is_not_white_is_still_airspace():
    tile = discs([centre for centre in LATTICE if centre[1] < 32])
    tile[:, :, 32:] = 243
    dim = (tile * np.array([0.95, 0.92, 0.9])).round().astype(np.uint8)
    assert morphology_of_tiles(dim, mpp=1.0).airspace_fraction == pytest.approx(0.5, abs=0.02)


def test_tiles_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="shape"):
        morphology_of_tiles(np.zeros((64, 64, 3), np.uint8), mpp=1.0)


@pytest.mark.parametrize("tissue", TISSUES)
def test_the_factors_of_simulated_donors_are_recovered(tissue):
    truth = spread_factors(DONORS, FACTOR_RANGES[tissue], numpy_generator(1, tissue))
    measured = []
    for donor, factors in enumerate(truth):
        rng = numpy_generator(2, tissue, donor)
        staining = random_staining(rng)
        region = draw_section(
            tissue, TissueFactors(*factors), staining, REGION_PX, rng, outline=False
        )
        small = morphology_of_tiles(cut(region, tile_px=64, shrink=2), mpp=1.0)
        large = morphology_of_tiles(cut(region, tile_px=256, shrink=1), mpp=0.5)
        measured.append((small, large))
    for resolution in (0, 1):
        values = np.array([each[resolution] for each in measured])
        for number, name in enumerate(TissueFactors._fields):
            r = np.corrcoef(truth[:, number], values[:, number])[0, 1]
            assert r >= 0.9, f"{tissue} {name}: r = {r:.3f}"
