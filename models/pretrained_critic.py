"""A critic that sees tiles through a network trained on photographs, and learns sooner by it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from models.convolution import Convolution
from models.critic import SLOPE, ConditionalCritic, doublings

NORM_EPSILON = 1e-3
LAST_PX = 4
POWER_ITERATIONS = 3  # a step, of each spectral norm


class Stage(NamedTuple):
    """Blocks of one width: kernel, stride of the first, expansion, channels, how many."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    blocks: int


STEM = 32
STAGES = (
    Stage(3, 1, 1, 16, 1), Stage(3, 2, 6, 24, 2), Stage(5, 2, 6, 40, 2), Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3), Stage(5, 2, 6, 192, 4), Stage(3, 1, 6, 320, 1),
)  # fmt: skip
SEEN = {1: 4, 2: 8, 4: 16, 6: 32}  # stages whose maps are read, and the side's part that they have


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 up to its classifier, batch normalisation folded into the convolutions.

    Args:
        stages: how many of STAGES are computed.

    Source: Tan and Le 2019 (arXiv 1905.11946), table 1; Lite: without squeeze-and-excitation, with
    ReLU6, images in [-1, 1].
    """

    def __init__(self, stages: int = len(STAGES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_padded(3, STEM, 3, 2), nn.ReLU6())
        self.stages = nn.ModuleList()
        before = STEM
        for stage in STAGES[:stages]:
            blocks = []
            for number in range(stage.blocks):
                stride = 1 if number else stage.stride
                blocks.append(InvertedResidual(before, stage, stride))
                before = stage.channels
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (N, C, H / s, W / s) of the stages SEEN of images (N, 3, H, W)."""
        features, seen = self.stem(images), []
        for number, stage in enumerate(self.stages):
            features = stage(features)
            if number in SEEN:
                seen.append(features)
        return seen

    @torch.no_grad()
    def load_published(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a state dict in which batch normalisation is apart.

        Args:
            state: of efficientnet_lite_pytorch; every convolution is followed by its normalisation.

        Raises:
            ValueError: shapes or number of the weights are not this network's.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        weights = [value for value in state.values() if value.ndim == 4]
        norms = [name.removesuffix("running_mean") for name in state if "running_mean" in name]
        if len(weights) < len(layers) or len(norms) < len(layers):
            raise ValueError(f"{len(weights)} convolutions, {len(layers)} are needed")
        for layer, weight, norm in zip(layers, weights, norms, strict=False):
            if weight.shape != layer.weight.shape:
                raise ValueError(f"a weight {tuple(weight.shape)}, not {tuple(layer.weight.shape)}")
            scale = state[norm + "weight"] / (state[norm + "running_var"] + NORM_EPSILON).sqrt()
            layer.weight.copy_(weight * scale[:, None, None, None])
            layer.bias.copy_(state[norm + "bias"] - state[norm + "running_mean"] * scale)


class InvertedResidual(nn.Module):
    """1 x 1 to a multiple of the channels, depthwise, 1 x 1 back; added to its input if it can be.

    Source: Sandler et al. 2018 (arXiv 1801.04381), figure 3.
    """

    def __init__(self, before: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = before * stage.expansion
        layers: list[nn.Module] = []
        if stage.expansion > 1:
            layers += [Convolution(before, wide, 1), nn.ReLU6()]
        layers += [*_padded(wide, wide, stage.kernel, stride, wide), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, Convolution(wide, stage.channels, 1))
        self.added = stride == 1 and before == stage.channels

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, O, h, w) of features (N, C, H, W)."""
        return features + self.layers(features) if self.added else self.layers(features)


class PretrainedCritic(ConditionalCritic):
    """Scores images (N, 3, image_px, image_px) by the maps of a fixed EfficientNet-Lite0 at a
    fourth, eighth, ... of their side down to 4 px, and by their pixels.

    The maps are mixed by fixed random 1 x 1 and 3 x 3 convolutions, from the coarsest up, so that
    no map can be neglected. A head of its own, with spectral normalisation in place of a gradient
    penalty, takes each of them to 4 px; one starts from the pixels, as the network's first layers
    do not see what repeats every two pixels.

    Args:
        image_px: side, a power of two from 16 on.
        step_channels: channels of the pixels' head, beside the image; they double with every
            halving up to four times as many.
        output, latent_dim, conditioning: as in `ConditionalCritic.build_head`.

    Source: Sauer et al. 2021 (arXiv 2111.01007), projected GAN, with one score of all heads; with
    pixels beside it: Kumari et al. 2022 (arXiv 2112.09130).
    """

    def __init__(
        self,
        image_px: int = 256,
        step_channels: int = 64,
        output: str = "linear",
        latent_dim: int = 0,
        conditioning: str = "none",
    ) -> None:
        super().__init__()
        doublings(image_px)  # refuses other sides
        seen = [number for number, part in SEEN.items() if image_px // part >= LAST_PX]
        widths = [step_channels * wide for wide in (2, 2, 4, 8)][: len(seen)]
        last = 4 * step_channels
        self.backbone = EfficientNetLite(seen[-1] + 1)
        self.across = nn.ModuleList(
            Convolution(STAGES[number].channels, width, 1, bias=False)
            for number, width in zip(seen, widths, strict=True)
        )
        self.up = nn.ModuleList(
            Convolution(coarse, fine, 3, 1, 1, bias=False)
            for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        for layer in (*self.across, *self.up):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        sides = [image_px // SEEN[number] for number in seen]
        self.heads = nn.ModuleList(
            _head(width, min(2 * width, last), last, side)
            for width, side in zip(widths, sides, strict=True)
        )
        self.heads.append(_head(3, step_channels, last, image_px))
        places = LAST_PX**2
        self.build_head(last * len(self.heads), places, latent_dim, conditioning, output, bias=True)
        self.requires_grad_(True)
        self.train()

    def requires_grad_(self, requires_grad: bool = True) -> PretrainedCritic:
        """Have the gradients of what learns computed, or not; the rest stays fixed."""
        super().requires_grad_(requires_grad)
        for fixed in (self.backbone, self.across, self.up):
            fixed.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> PretrainedCritic:
        """Set the mode; spectral norms move in `begin_step` alone, not whenever they are used."""
        super().train(mode)
        for norm in self._spectral_norms():
            norm.eval()
        return self

    @torch.no_grad()
    def begin_step(self) -> None:
        """Take the step's power iterations of every spectral norm."""
        for norm in self._spectral_norms():
            norm.train()
            norm()
            norm.eval()

    def _spectral_norms(self) -> list[nn.Module]:
        layers = filter(is_parametrized, self.modules())
        return [layer.parametrizations.weight for layer in layers]

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, C * 16) of images (N, 3, H, W) in [-1, 1]."""
        images = images.contiguous(memory_format=torch.channels_last)
        maps = [layer(seen) for layer, seen in zip(self.across, self.backbone(images), strict=True)]
        for level in reversed(range(len(self.up))):
            coarse = F.interpolate(self.up[level](maps[level + 1]), scale_factor=2.0)
            maps[level] = (maps[level] + coarse) / math.sqrt(2)
        made = [head(given) for head, given in zip(self.heads, [*maps, images], strict=True)]
        return torch.cat(made, dim=1).flatten(1)  # of (N, heads * last, 4, 4)


def _padded(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list:
    """Return a convolution padded as TensorFlow does: the odd pixel to the right and below."""
    both = kernel - stride
    padding = nn.ZeroPad2d((both // 2, both - both // 2) * 2)
    return [padding, Convolution(before, after, kernel, stride, groups=groups)]


def _head(before: int, after: int, last: int, side: int) -> nn.Sequential:
    """Return the layers from a map of `before` channels to one of `last` channels and 4 px."""
    layers: list[nn.Module] = []
    while side > LAST_PX:
        layers += [_bounded(Convolution(before, after, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
        before, after, side = after, min(2 * after, last), side // 2
    layers += [_bounded(Convolution(before, last, 3, 1, 1)), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def _bounded(layer: Convolution) -> Convolution:
    return spectral_norm(layer, n_power_iterations=POWER_ITERATIONS)
