"""Convolutions for training with gradient penalties, and the DCGAN's strided 4 x 4 layers.

torch's second derivative of a convolution takes the weight's part as a convolution with a kernel of
the size of the feature map, which no library is made for. Here all derivatives are the three
products that a convolution and its gradients are, each the other two's derivative: a penalty takes
about half the time. The strided layers are matrix products where a CPU is faster that way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL, STRIDE, PADDING = 4, 2, 1
# A CPU multiplies matrices faster than it convolves while the smaller map has at most so many
# pixels per channel, over all images: then the cost is in the weights, which a convolution
# rearranges at every call. Measured: at full size 5 to 10 times faster at 4 px, twice at 8 px.
PIXELS_PER_CHANNEL = 2


class Convolution(nn.Conv2d):
    """`nn.Conv2d`, zero padded, with faster second derivatives."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, O, h, w) of features (N, C, H, W)."""
        if not torch.is_grad_enabled():
            return super().forward(features)
        given, kind = [features, self.weight, self.bias], features.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            given = [None if part is None else part.to(dtype) for part in given]
        return Convolve.apply(*given, (self.stride, self.padding, self.dilation, self.groups))


def input_gradient(value: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of a scalar at `inputs`, to be derived once more.

    As `torch.autograd.grad` with `create_graph`, but convolutions leave out the gradients of their
    weights, which nobody asks for.
    """
    global _weights_asked_for
    _weights_asked_for = False
    try:
        return torch.autograd.grad(value, inputs, create_graph=True)[0]
    finally:
        _weights_asked_for = True


# Read in threads of torch's, when a GPU is used; false within `input_gradient`.
_weights_asked_for = True


class Convolve(torch.autograd.Function):
    """Convolution: images (N, C, H, W), weight (O, C / groups, k, k), bias (O,) or None."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.how = how
        return F.conv2d(images, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias, _ = ctx.needs_input_grad
        asked = _weights_asked_for
        return (
            ConvolveBack.apply(gradient, weight, images.shape, ctx.how) if of_images else None,
            WeightGradient.apply(images, gradient, weight.shape, ctx.how)
            if of_weight and asked
            else None,
            gradient.sum(dim=(0, 2, 3)) if of_bias and asked else None,
            None,
        )


class ConvolveBack(torch.autograd.Function):
    """A convolution's gradient at its images; linear in that at its output and in the weight."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, size: torch.Size, how: Any) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.how = how
        return torch.nn.grad.conv2d_input(size, weight, gradient, *how)

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        of_gradient, of_weight = ctx.needs_input_grad[:2]
        return (
            Convolve.apply(images, weight, None, ctx.how) if of_gradient else None,
            WeightGradient.apply(images, gradient, weight.shape, ctx.how)
            if of_weight and _weights_asked_for
            else None,
            None,
            None,
        )


class WeightGradient(torch.autograd.Function):
    """A convolution's gradient at its weight; linear in its images and in that at its output."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, gradient: Tensor, size: torch.Size, how: Any) -> Tensor:
        ctx.save_for_backward(images, gradient)
        ctx.how = how
        return torch.nn.grad.conv2d_weight(images, size, gradient, *how)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        images, gradient = ctx.saved_tensors
        of_images, of_gradient = ctx.needs_input_grad[:2]
        return (
            ConvolveBack.apply(gradient, weight, images.shape, ctx.how) if of_images else None,
            Convolve.apply(images, weight, None, ctx.how) if of_gradient else None,
            None,
            None,
        )


class Downsample(Convolution):
    """Convolution with a 4 x 4 kernel that halves the side: (N, C, H, W) to (N, O, H/2, W/2).

    Weights, names and results are those of `nn.Conv2d(channels, out, 4, 2, 1)`.
    """

    def __init__(self, channels: int, out: int, bias: bool = True) -> None:
        super().__init__(channels, out, KERNEL, STRIDE, PADDING, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, O, H/2, W/2) of features (N, C, H, W)."""
        count, height, width = len(features), features.shape[2] // 2, features.shape[3] // 2
        if not _as_matrix(features, count * height * width, self.out_channels):
            return super().forward(features)
        columns = Patches.apply(features.permute(0, 2, 3, 1))  # (N h w, 16 C)
        rows = Product.apply(columns.to(self.weight.dtype), self.weight)  # (N h w, O)
        rows = rows if self.bias is None else rows + self.bias
        return rows.view(count, height, width, self.out_channels).permute(0, 3, 1, 2)


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution that doubles the side: (N, C, h, w) to (N, O, 2h, 2w).

    Weights, names and results are those of `nn.ConvTranspose2d(channels, out, 4, 2, 1)`.
    """

    def __init__(self, channels: int, out: int, bias: bool = True) -> None:
        super().__init__(channels, out, KERNEL, STRIDE, PADDING, bias=bias)

    def forward(self, features: Tensor, output_size: None = None) -> Tensor:
        """Return features (N, O, 2h, 2w) of features (N, C, h, w)."""
        count, _, height, width = features.shape
        if not _as_matrix(features, count * height * width, self.in_channels):
            return super().forward(features, output_size)
        rows = features.permute(0, 2, 3, 1).reshape(-1, self.in_channels)  # (N h w, C)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.in_channels, -1)  # (C, 16 O)
        columns = wide_product(rows, weight.T)  # (N h w, 16 O)
        image = Overlap.apply(columns, (count, height, width))  # (N, 2h, 2w, O)
        if self.bias is not None:
            image = image + self.bias
        return image.permute(0, 3, 1, 2)

    @torch.no_grad()
    def make_even(self) -> None:
        """Move the weights the least way to where level features give a level result.

        Of the 4 x 4 taps one output pixel takes 2 x 2, in four ways that alternate in rows and
        columns. Where their sums differ, the result has a raster of two pixels.
        """
        ways = [self.weight[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        sums = [way.sum(dim=(2, 3), keepdim=True) for way in ways]
        mean = sum(sums) / len(sums)
        for way, own in zip(ways, sums, strict=True):
            way -= (own - mean) / len(ways)


class Product(torch.autograd.Function):
    """Rows (N, O) of rows (N, k k C) and a convolution's weight (O, C, k, k).

    The weight's gradient is added to `weight.grad` where it is made: a penalty makes two of them,
    and autograd would hold both and their sum, three times the weight, which is most of the critic.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return wide_product(rows, _matrix(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_weight = ctx.needs_input_grad[1] and _weights_asked_for
        return (
            ProductBack.apply(gradient, weight) if ctx.needs_input_grad[0] else None,
            _learn(weight, gradient, rows) if of_weight else None,
        )


class ProductBack(torch.autograd.Function):
    """A `Product`'s gradient at its rows; linear in that at its output and in the weight."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        return wide_product(gradient, _matrix(weight).T)

    @staticmethod
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        of_weight = ctx.needs_input_grad[1] and _weights_asked_for
        return (
            Product.apply(rows, weight) if ctx.needs_input_grad[0] else None,
            _learn(weight, gradient, rows) if of_weight else None,
        )


def _matrix(weight: Tensor) -> Tensor:
    """Return a convolution's weight (O, C, k, k) as matrix (O, k k C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _learn(weight: Tensor, gradient: Tensor, rows: Tensor) -> Tensor | None:
    """Add a `Product`'s gradient to the weight's, or return it where autograd has to."""
    matrix_is_view = weight.is_contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() or not weight.is_leaf or not matrix_is_view:
        product = (gradient.T @ rows).unflatten(1, (*weight.shape[2:], weight.shape[1]))
        return product.permute(0, 3, 1, 2)
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    _matrix(weight.grad).addmm_(gradient.T, rows)
    return None


class Patches(torch.autograd.Function):
    """The 4 x 4 patches, two pixels apart, of padded images: (N, 2h, 2w, C) to (N h w, 16 C).

    Linear, and the adjoint of `Overlap`: each is the other's derivative, to any order.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        count, height, width, channels = image.shape
        ctx.shape = (count, height // 2, width // 2)
        padded = F.pad(image, (0, 0, PADDING, PADDING, PADDING, PADDING))
        views = padded.unfold(1, KERNEL, STRIDE).unfold(2, KERNEL, STRIDE)  # (N, h, w, C, 4, 4)
        return views.permute(0, 1, 2, 4, 5, 3).reshape(-1, KERNEL * KERNEL * channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Overlap.apply(gradient, ctx.shape)


class Overlap(torch.autograd.Function):
    """The sum of 4 x 4 patches, two pixels apart, without the border: (N h w, 16 C) and (N, h, w)
    to (N, 2h, 2w, C)."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, shape: tuple[int, int, int]) -> Tensor:
        count, height, width = shape
        parts = columns.view(count, height, width, 2, 2, 2, 2, -1)  # kernel row 2a + b, column too
        sums = columns.new_zeros(count, height + 1, 2, width + 1, 2, parts.shape[-1])
        for down in (0, 1):
            for right in (0, 1):
                place = sums[:, down : down + height, :, right : right + width]
                place += parts[:, :, :, down, :, right].permute(0, 1, 3, 2, 4, 5)
        return sums.view(count, 2 * height + 2, 2 * width + 2, -1)[:, 1:-1, 1:-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Patches.apply(gradient), None


def wide_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the linear layer's rows (N, O) of rows (N, C), for far more weights than rows.

    Out of autocast: its bfloat16 copies of all weights and of their gradients cost more than the
    product. A CPU still multiplies in bfloat16 within `runtime.device.bfloat16_products`.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return F.linear(rows.to(weight.dtype), weight)


def _as_matrix(features: Tensor, pixels: int, channels: int) -> bool:
    return features.device.type == "cpu" and pixels <= PIXELS_PER_CHANNEL * channels
