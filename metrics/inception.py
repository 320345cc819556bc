"""The Inception network of the FID, up to its 2048 pooled features, with batch norms folded in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3  # of every batch norm in the original graph
# Intel's library does a convolution or product and its ReLU in one pass. torch offers these to its
# compiler alone, which would compile for minutes.
ONE_PASS = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class ConvReLU(nn.Conv2d):
    """Convolution, bias and ReLU: a convolution with its fixed batch norm folded in."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C, H, W)."""
        if features.device.type != "cpu" or not ONE_PASS:
            return super().forward(features).relu_()
        if self.kernel_size == (1, 1):
            rows = features.permute(0, 2, 3, 1)  # (N, H, W, C)
            given = (rows, self.weight.flatten(1), self.bias)
            return torch.ops.mkldnn._linear_pointwise(*given, "relu", [], "").permute(0, 3, 1, 2)
        given = (features, self.weight, self.bias, self.padding, self.stride, self.dilation)
        return torch.ops.mkldnn._convolution_pointwise(*given, self.groups, "relu", [], "")


class MaxPool(nn.MaxPool2d):
    """Maximum over 3 x 3 places, two apart, of features that are not negative."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C, h, w), h = (H - 1) // 2, of features (N, C, H, W) >= 0."""
        if features.device.type != "cpu" or features.dtype != torch.bfloat16:
            return super().forward(features)
        # Without a sign numbers sort as their bits do, and a CPU compares integers twice as fast.
        bits = features.view(torch.int16)
        high, wide = ((side - 1) // 2 for side in features.shape[2:])
        rows = [bits[:, :, first : first + 2 * high - 1 : 2] for first in range(3)]
        bits = _maximum(*rows)
        columns = [bits[:, :, :, first : first + 2 * wide - 1 : 2] for first in range(3)]
        return _maximum(*columns).view(torch.bfloat16)


class PooledConvReLU(ConvReLU):
    """Average over 3 x 3 places, the padding left out, then a 1 x 1 convolution, bias and ReLU.

    Both are linear and change places: fewer channels are left to be averaged.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C, H, W)."""
        mixed = nn.Conv2d.forward(self, features)
        return F.avg_pool2d(mixed, 3, 1, 1, count_include_pad=False).relu_()


class Mixed(nn.Module):
    """Branches side by side, their channels concatenated in the order given."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C of all branches, H, W)."""
        return torch.cat([branch(features) for branch in self.children()], dim=1)


class MixedE(nn.Module):
    """The last two blocks, in which two branches fork once more."""

    def __init__(self, channels: int, pool: nn.Module, pooled: ConvReLU) -> None:
        super().__init__()
        self.conv = ConvReLU(channels, 320, 1)
        self.tower_conv = ConvReLU(channels, 384, 1)
        self.tower_mixed_conv = _row(384, 384, 3)
        self.tower_mixed_conv_1 = _column(384, 384, 3)
        self.tower_1_conv = ConvReLU(channels, 448, 1)
        self.tower_1_conv_1 = ConvReLU(448, 384, 3, padding=1)
        self.tower_1_mixed_conv = _row(384, 384, 3)
        self.tower_1_mixed_conv_1 = _column(384, 384, 3)
        self.tower_2_pool = pool
        self.tower_2_conv = pooled

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, 2048, H, W)."""
        one = self.tower_conv(features)
        two = self.tower_1_conv_1(self.tower_1_conv(features))
        branches = [
            self.conv(features),
            self.tower_mixed_conv(one),
            self.tower_mixed_conv_1(one),
            self.tower_1_mixed_conv(two),
            self.tower_1_mixed_conv_1(two),
            self.tower_2_conv(self.tower_2_pool(features)),
        ]
        return torch.cat(branches, dim=1)


class FIDInception(nn.Module):
    """Maps images (N, 3, 299, 299), levels (x - 128) / 128, to the FID's features (N, 2048).

    Layer names are those of the original graph, so that its weights load by name.

    Source: Szegedy et al. 2016 (arXiv 1512.00567) in the variant of the TensorFlow graph of
    2015-12-05, which Heusel et al. 2017 (arXiv 1706.08500) fixed for the FID: average pools leave
    the padding out, and the last block has a maximum pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(  # channels x side behind each layer
                conv=ConvReLU(3, 32, 3, stride=2),  # 32 x 149
                conv_1=ConvReLU(32, 32, 3),  # 32 x 147
                conv_2=ConvReLU(32, 64, 3, padding=1),  # 64 x 147
                pool0=MaxPool(),  # 64 x 73
                conv_3=ConvReLU(64, 80, 1),  # 80 x 73
                conv_4=ConvReLU(80, 192, 3),  # 192 x 71
                pool1=MaxPool(),  # 192 x 35
                mixed=_block_a(192, 32),  # 256 x 35
                mixed_1=_block_a(256, 64),  # 288 x 35
                mixed_2=_block_a(288, 64),  # 288 x 35
                mixed_3=_block_b(),  # 768 x 17
                mixed_4=_block_c(128),  # 768 x 17
                mixed_5=_block_c(160),  # 768 x 17
                mixed_6=_block_c(160),  # 768 x 17
                mixed_7=_block_c(192),  # 768 x 17
                mixed_8=_block_d(),  # 1280 x 8
                mixed_9=MixedE(1280, nn.Identity(), PooledConvReLU(1280, 192)),  # 2048 x 8
                mixed_10=MixedE(2048, nn.MaxPool2d(3, 1, 1), ConvReLU(2048, 192, 1)),  # 2048 x 8
                pool2=nn.AvgPool2d(8),  # 2048 x 1
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 2048) of images (N, 3, 299, 299) in [-1, 1); any float dtype."""
        images = images.to(next(self.parameters()).dtype, memory_format=torch.channels_last)
        return self.layers(images).flatten(1)


def fold_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of `FIDInception` from the original graph's.

    The original keeps weight, beta, mean and var (no gamma) per convolution; folded they are
    weight / sqrt(var + epsilon) and beta - mean / sqrt(var + epsilon). Folding is done in float64.

    Args:
        state: weights under names such as `net.layers.mixed.conv.weight`; a prefix before `layers.`
            is ignored.

    Raises:
        ValueError: a convolution's weights are incomplete.
    """
    folded = {}
    for name, weight in state.items():
        layer, part = name.rsplit(".", 1)
        if part != "weight":
            continue
        try:
            beta, mean, var = (state[f"{layer}.{key}"].double() for key in ("beta", "mean", "var"))
        except KeyError as error:
            raise ValueError(f"no {error.args[0]} in it") from error
        scale = (var + EPSILON).rsqrt()
        own = layer[layer.find("layers.") :]
        folded[f"{own}.weight"] = (weight.double() * scale[:, None, None, None]).float()
        folded[f"{own}.bias"] = (beta - mean * scale).float()
    return folded


def _maximum(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    largest = torch.maximum(one, two)
    return torch.maximum(largest, three, out=largest)


def _tower(*layers: nn.Module) -> nn.Sequential:
    """Name layers as the graph does: conv, conv_1, conv_2, ..."""
    names = (f"conv_{number}" if number else "conv" for number in range(len(layers)))
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


def _row(inputs: int, outputs: int, width: int) -> ConvReLU:
    return ConvReLU(inputs, outputs, (1, width), padding=(0, width // 2))


def _column(inputs: int, outputs: int, height: int) -> ConvReLU:
    return ConvReLU(inputs, outputs, (height, 1), padding=(height // 2, 0))


def _block_a(channels: int, pooled: int) -> Mixed:
    return Mixed(
        conv=ConvReLU(channels, 64, 1),
        tower=_tower(ConvReLU(channels, 48, 1), ConvReLU(48, 64, 5, padding=2)),
        tower_1=_tower(
            ConvReLU(channels, 64, 1),
            ConvReLU(64, 96, 3, padding=1),
            ConvReLU(96, 96, 3, padding=1),
        ),
        tower_2=_tower(PooledConvReLU(channels, pooled)),
    )


def _block_b() -> Mixed:
    return Mixed(
        conv=ConvReLU(288, 384, 3, stride=2),
        tower=_tower(
            ConvReLU(288, 64, 1),
            ConvReLU(64, 96, 3, padding=1),
            ConvReLU(96, 96, 3, stride=2),
        ),
        pool=MaxPool(),
    )


def _block_c(narrow: int) -> Mixed:
    return Mixed(
        conv=ConvReLU(768, 192, 1),
        tower=_tower(ConvReLU(768, narrow, 1), _row(narrow, narrow, 7), _column(narrow, 192, 7)),
        tower_1=_tower(
            ConvReLU(768, narrow, 1),
            _column(narrow, narrow, 7),
            _row(narrow, narrow, 7),
            _column(narrow, narrow, 7),
            _row(narrow, 192, 7),
        ),
        tower_2=_tower(PooledConvReLU(768, 192)),
    )


def _block_d() -> Mixed:
    return Mixed(
        tower=_tower(ConvReLU(768, 192, 1), ConvReLU(192, 320, 3, stride=2)),
        tower_1=_tower(
            ConvReLU(768, 192, 1),
            _row(192, 192, 7),
            _column(192, 192, 7),
            ConvReLU(192, 192, 3, stride=2),
        ),
        pool=MaxPool(),
    )
