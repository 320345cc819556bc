import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.encoding import decode_image, encode_jpeg, encode_png


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_png_is_read_back_exactly_by_an_independent_reader(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert (np.asarray(image) == pixels).all()


def test_png_of_a_view_is_that_of_its_copy():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    assert encode_png(pixels[::2, 3:9, :3]) == encode_png(pixels[::2, 3:9, :3].copy())


def test_png_of_smooth_pixels_is_smaller_than_they_are():
    ramp = np.add.outer(np.arange(256), np.arange(256)) // 2
    pixels = np.stack([ramp] * 3, axis=2).astype(np.uint8)
    assert len(encode_png(pixels)) < pixels.size / 4


@pytest.mark.parametrize("quality", [80, 95])
def test_jpeg_keeps_colours_and_is_the_same_each_time(quality):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = (200, 30, 30)
    pixels[:, 8:] = (30, 30, 200)
    content = encode_jpeg(pixels, quality)
    assert content == encode_jpeg(pixels, quality)
    with Image.open(io.BytesIO(content)) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() < 12


@pytest.mark.parametrize("kept", [2, 100, 0.5])
def test_damaged_jpeg_is_an_error(kept):
    content = encode_jpeg(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), 90
    )
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode_image(content[: int(len(content) * kept) if kept < 1 else kept])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("quality", [50, 95])
def test_jpeg_is_decoded_as_pillow_does(mode, quality):
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image = coarse.resize((64, 64), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, progressive=quality == 50)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    found = decode_image(buffer.getvalue())
    assert found.shape == (64, 64, 3)
    # CMYK becomes RGB by two formulas that round differently.
    np.testing.assert_allclose(found.astype(int), expected, atol=int(mode == "CMYK"))
