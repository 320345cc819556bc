"""The strided layers as matrix products: torch's convolutions, to any derivative."""

import pytest
import torch
from torch import nn

from models import convolution
from models.convolution import (
    Convolution,
    Downsample,
    Overlap,
    Patches,
    Upsample,
    WeightGradient,
    input_gradient,
)


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
    penalty.backward()
    return [made, *first, *(part.grad for part in (images, *weights) if part.grad is not None)]


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_even_layer_has_no_raster_and_its_weights_moved_the_least(layout):
    layer = Upsample(6, 4).to(memory_format=layout)
    nn.init.normal_(layer.weight)
    level = torch.randn(1, 6, 1, 1).expand(1, 6, 5, 5)
    before = layer.weight.detach().clone()
    assert layer(level)[..., 1:-1, 1:-1].std(dim=(2, 3)).min() > 0.1
    layer.make_even()
    inside = layer(level)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside))
    even = layer.weight.detach().clone()
    layer.make_even()
    torch.testing.assert_close(layer.weight.detach(), even)
    other = Upsample(6, 4)  # any other even weights: the way there is at a right angle
    nn.init.normal_(other.weight)
    other.make_even()
    across = ((even - before) * (other.weight.detach() - even)).sum()
    assert across.abs() < 1e-3 * (even - before).norm() * (other.weight.detach() - even).norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [(4, 2, 1, 1, 1), (3, 1, 1, 1, 2), (1, 1, 0, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_is_torchs_with_first_and_second_derivatives(exact, how, bias, layout):
    kernel, stride, padding, dilation, groups = how
    layer = Convolution(4, 6, kernel, stride, padding, dilation, groups, bias)
    other = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias)
    layer.to(memory_format=layout)
    other.load_state_dict(layer.state_dict())
    images = torch.randn(2, 4, 8, 9).contiguous(memory_format=layout)
    for one, expected in zip(derivatives(layer, images), derivatives(other, images), strict=True):
        torch.testing.assert_close(one, expected)


def test_a_penalty_leaves_out_the_weights_of_the_first_derivative_alone(exact, monkeypatch):
    layers = nn.Sequential(Convolution(3, 4, 3), nn.Softplus(), Convolution(4, 2, 3))
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    calls, apply = [], WeightGradient.apply
    monkeypatch.setattr(WeightGradient, "apply", lambda *a: calls.append(1) or apply(*a))
    gradient = input_gradient(layers(images).sin().sum(), images)
    assert not calls
    (expected,) = torch.autograd.grad(layers(images).sin().sum(), images, create_graph=True)
    assert len(calls) == 2
    torch.testing.assert_close(gradient, expected)
    weights = list(layers.parameters())
    found = torch.autograd.grad(gradient.square().sum(), weights)
    for one, other in zip(
        found, torch.autograd.grad(expected.square().sum(), weights), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_convolution_in_bfloat16_autocast_is_torchs():
    layer, images = Convolution(8, 8, 3, padding=1), torch.randn(2, 8, 6, 6)
    other = nn.Conv2d(8, 8, 3, padding=1)
    other.load_state_dict(layer.state_dict())
    made = []
    for one in (layer, other):
        with torch.autocast("cpu", torch.bfloat16):
            out = one(images)
            (out.float().square().sum()).backward()
        assert out.dtype == torch.bfloat16
        made.append((out, one.weight.grad, one.bias.grad))
    for found, expected in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


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
