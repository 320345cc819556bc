"""The DCGAN's strided 4 x 4 layers, as matrix products where a CPU is faster that way."""

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


class Downsample(nn.Conv2d):
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
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)  # (O, 16 C)
        rows = F.linear(columns, weight, self.bias)  # (N h w, O)
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
        image = Overlap.apply(rows @ weight, (count, height, width))  # (N, 2h, 2w, O)
        if self.bias is not None:
            image = image + self.bias
        return image.permute(0, 3, 1, 2)


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


def _as_matrix(features: Tensor, pixels: int, channels: int) -> bool:
    return features.device.type == "cpu" and pixels <= PIXELS_PER_CHANNEL * channels
