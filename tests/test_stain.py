import json

import numpy as np
import pytest
from PIL import Image

from data.stain import (
    LIGHT,
    StainReference,
    fit_normaliser,
    fit_reference,
    macenko_stains,
    read_reference,
    reinhard_statistics,
)
from runtime.errors import UserError

STAINS = np.array([[0.65, 0.70, 0.29], [0.27, 0.88, 0.39]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
OTHER = np.array([[0.55, 0.76, 0.35], [0.10, 0.95, 0.30]])
OTHER /= np.linalg.norm(OTHER, axis=1, keepdims=True)


def stained(stains, strength=1.0, seed=0, px=120):
    """Return pixels of known stains: half of them nearly pure in one, concentrations 0 to 1.5."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.3, 1.5, (px * px, 2)) * strength
    pure = rng.integers(0, 2, px * px)
    amounts[np.arange(px * px), pure] *= rng.choice([0.0, 1.0], px * px)
    pixels = LIGHT * np.exp(-amounts @ stains) - 1
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8).reshape(px, px, 3)


def test_macenko_finds_the_stains_that_were_put_in():
    stains, maxima = macenko_stains(stained(STAINS))
    assert np.allclose(np.linalg.norm(stains, axis=1), 1)
    assert (np.sum(stains * STAINS, axis=1) > 0.999).all()
    assert maxima == pytest.approx([1.5, 1.5], rel=0.05)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_normalised_colours_are_those_of_the_reference(method):
    source, target = stained(STAINS, 0.7), stained(OTHER, 1.0, seed=1)
    reference = fit_reference(target, "test")
    moved = fit_normaliser(method, source, reference)(source)
    assert (moved.dtype, moved.shape) == (np.uint8, source.shape)
    before, after = (
        np.abs(reinhard_statistics(part)[0] - reinhard_statistics(target)[0]).sum()
        for part in (source, moved)
    )
    assert after < 0.2 * before
    if method == "macenko":
        assert (np.sum(macenko_stains(moved)[0] * OTHER, axis=1) > 0.99).all()


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_pixels_of_the_reference_itself_hardly_change(method):
    pixels = stained(STAINS)
    moved = fit_normaliser(method, pixels, fit_reference(pixels, "test"))(pixels)
    assert np.abs(moved.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_glass_stays_glass(method):
    pixels = stained(STAINS)
    normalise = fit_normaliser(method, pixels, fit_reference(stained(OTHER), "test"))
    glass = normalise(np.full((8, 8, 3), 239, np.uint8)).astype(int)
    assert np.abs(glass - 239).max() <= 4


@pytest.mark.parametrize("colour", [(243, 243, 243), (150, 60, 120)])
def test_too_little_stain_or_a_single_one_is_an_error(colour):
    pixels = np.full((100, 100, 3), colour, np.uint8)
    with pytest.raises(ValueError, match="stain"):
        macenko_stains(pixels)
    with pytest.raises(ValueError, match="stained|one colour"):
        reinhard_statistics(pixels)


def test_reference_is_read_from_json_and_from_an_image(tmp_path):
    default = read_reference()
    assert "TCGA" in default.source
    assert np.allclose(np.linalg.norm(default.macenko_stains, axis=1), 1, atol=1e-3)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(default.model_dump()))
    assert read_reference(path) == default
    pixels = stained(STAINS)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    assert read_reference(tmp_path / "own.png") == fit_reference(pixels, "own.png")


def test_what_is_no_reference_is_one_line_naming_it(tmp_path):
    (tmp_path / "a.json").write_text('{"source": "x"}')
    Image.new("RGB", (64, 64), "white").save(tmp_path / "glass.png")
    for name in ("a.json", "glass.png", "missing.json"):
        with pytest.raises(UserError, match=name) as caught:
            read_reference(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_reference_has_two_stains_of_three_channels():
    values = read_reference().model_dump() | {"macenko_stains": [[1.0, 0.0, 0.0]]}
    with pytest.raises(ValueError, match="macenko_stains"):
        StainReference.model_validate(values)
