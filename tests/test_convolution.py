"""The strided layers as matrix products: torch's convolutions, to any derivative."""

import pytest
import torch
from torch import nn

from models import convolution
from models.convolution import Downsample, Overlap, Patches, Upsample


@pytest.fixture
def exact():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def derivatives(layer, images):
    """Return output, first derivatives, and derivatives of a penalty on the input's gradient."""
    images = images.clone().requires_grad_(True)
    made = layer(images)
    weights = list(layer.parameters())
    value = made.sin().sum()
    first = torch.autograd.grad(value, [images, *weights], create_graph=True)
    penalty = first[0].square().sum(dim=(1, 2, 3)).sqrt().sub(1).square().mean()
    second = torch.autograd.grad(penalty, [images, *weights], allow_unused=True)
    return [made, *first, *(part for part in second if part is not None)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("made", "plain", "size"),
    [
        (Downsample(3, 5), nn.Conv2d, (2, 3, 8, 12)),
        (Upsample(3, 5), nn.ConvTranspose2d, (2, 3, 4, 6)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matrix_form_equals_the_convolution_with_first_and_second_derivatives(
    exact, monkeypatch, made, plain, size, bias, layout
):
    monkeypatch.setattr(convolution, "PIXELS_PER_CHANNEL", 1000)
    layer = type(made)(3, 5, bias=bias).to(memory_format=layout)
    other = plain(3, 5, 4, 2, 1, bias=bias)
    other.load_state_dict(layer.state_dict())
    images = torch.randn(size).contiguous(memory_format=layout)
    calls = []
    for function in (Patches, Overlap):
        apply = function.apply
        monkeypatch.setattr(function, "apply", lambda *a, f=apply: calls.append(1) or f(*a))
    mine = derivatives(layer, images)
    assert calls
    for one, expected in zip(mine, derivatives(other, images), strict=True):
        torch.testing.assert_close(one, expected)


def test_patches_and_overlap_are_adjoint(exact):
    image, columns = torch.randn(2, 8, 6, 3), torch.randn(2 * 4 * 3, 48)
    there = (Patches.apply(image) * columns).sum()
    back = (image * Overlap.apply(columns, (2, 4, 3))).sum()
    torch.testing.assert_close(there, back)
    image.requires_grad_(True)
    assert torch.autograd.gradcheck(Patches.apply, (image,))
    assert torch.autograd.gradgradcheck(Patches.apply, (image,))


def test_large_maps_of_few_channels_stay_convolutions(monkeypatch):
    monkeypatch.setattr(Patches, "apply", lambda *given: pytest.fail("matrix form"))
    assert Downsample(3, 4)(torch.randn(2, 3, 32, 32)).shape == (2, 4, 16, 16)
