"""Residual generator and critic for the relativistic loss: better tiles than the DCGAN's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.convolution import Convolution
from models.critic import SLOPE, ConditionalCritic, doublings
from models.local_noise import LocalNoise, local_noise_dims

GROUP_WIDTH = 16
EXPANSION = 2
FIRST_PX = 4


class ResidualBlock(nn.Module):
    """x + W3 act(W2 act(W1 x)) with 1 x 1, grouped 3 x 3 and 1 x 1 convolutions, no normalisation.

    Args:
        channels: of input and output.
        depth: residual blocks in the whole network; scales the initial weights so that the
            variance of the sum does not grow with it.

    Source: R3GAN (arXiv 2501.05441), section 3.2; initial weights: Zhang et al. 2019 (arXiv
    1901.09321).
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        wide = channels * EXPANSION
        self.widen = Convolution(channels, wide, 1)
        self.mix = Convolution(wide, wide, 3, 1, 1, groups=wide // GROUP_WIDTH)
        self.narrow = Convolution(wide, channels, 1, bias=False)
        for layer in (self.widen, self.mix):
            _variance_preserving(layer, gain=depth**-0.25)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (N, C, H, W) of features (N, C, H, W)."""
        hidden = F.leaky_relu_(self.widen(features), SLOPE)  # (N, 2C, H, W)
        return features + self.narrow(F.leaky_relu_(self.mix(hidden), SLOPE))


class ResidualGenerator(nn.Module):
    """Maps latents (N, D) to images (N, 3, image_px, image_px) in about [-1, 1].

    A learned 4 x 4 basis, weighted by the latents, then stages of residual blocks at 4 px, 8 px
    and so on to half the image's side; a transposed convolution makes the image of it.

    Args:
        latent_dim: D.
        image_px: side, a power of two from 16 on.
        step_channels: channels of the last stage, a multiple of 16; they double with every
            halving up to 8 * step_channels.
        blocks: residual blocks per stage.
        local_noise: as in the DCGAN's generator.

    Source: R3GAN (arXiv 2501.05441), config E, which has no local noise. The last stage at half the
    side, where the paper has it at the full one, costs a quarter.
    """

    def __init__(
        self,
        latent_dim: int = 2048,
        image_px: int = 256,
        step_channels: int = 64,
        blocks: int = 2,
        local_noise: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.image_px = latent_dim, image_px
        self.shared_dim = latent_dim - local_noise * local_noise_dims(image_px)
        widths = stage_widths(image_px, step_channels)
        depth = blocks * len(widths)
        self.basis = nn.Parameter(torch.randn(widths[0], FIRST_PX, FIRST_PX))
        self.weigh = nn.Linear(self.shared_dim, widths[0], bias=False)
        nn.init.normal_(self.weigh.weight, std=math.sqrt(1 / self.shared_dim))
        stages: list[nn.Module] = []
        for before, channels in zip([widths[0], *widths], widths, strict=False):
            if stages:
                stages.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            if before != channels:
                stages.append(_resize_channels(before, channels))
            stages += [ResidualBlock(channels, depth) for _ in range(blocks)]
        self.stages = nn.Sequential(*stages)
        # It is added before the channels are narrowed.
        self.local_noise = LocalNoise(image_px, widths) if local_noise else None
        self.to_rgb = nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1)
        nn.init.normal_(self.to_rgb.weight, std=math.sqrt(1 / (widths[-1] * 4)))
        nn.init.zeros_(self.to_rgb.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of latents (N, D)."""
        latents, noise = latents[:, : self.shared_dim], latents[:, self.shared_dim :]
        weights = self.weigh(latents)[:, :, None, None]  # (N, C, 1, 1)
        features = (self.basis * weights).contiguous(memory_format=torch.channels_last)
        for layer in self.stages:
            features = layer(features)
            if self.local_noise is not None and isinstance(layer, nn.Upsample):
                features = self.local_noise(features, noise)
        return self.to_rgb(features)  # (N, 3, H, W)


class ResidualCritic(ConditionalCritic):
    """Scores images (N, 3, image_px, image_px): the generator's mirror image.

    Args:
        image_px, step_channels, blocks: as in `ResidualGenerator`.
        latent_dim, conditioning, output: as in `ConditionalCritic.build_head`.

    Source: R3GAN (arXiv 2501.05441), config E.
    """

    def __init__(
        self,
        image_px: int = 256,
        step_channels: int = 64,
        blocks: int = 2,
        output: str = "linear",
        latent_dim: int = 0,
        conditioning: str = "none",
    ) -> None:
        super().__init__()
        widths = stage_widths(image_px, step_channels)[::-1]
        depth = blocks * len(widths)
        first = Convolution(3, widths[0], 4, 2, 1)
        _variance_preserving(first)
        stages: list[nn.Module] = [first]
        for channels, after in zip(widths, [*widths[1:], widths[-1]], strict=True):
            stages += [ResidualBlock(channels, depth) for _ in range(blocks)]
            if channels != after:
                stages.append(_resize_channels(channels, after))
            stages.append(nn.AvgPool2d(2))
        self.stages = nn.Sequential(*stages[:-1])
        # One 4 x 4 filter per channel takes the last map to one value.
        self.collapse = nn.Parameter(torch.randn(widths[-1], FIRST_PX, FIRST_PX) / FIRST_PX)
        self.build_head(widths[-1], 1, latent_dim, conditioning, output, bias=True)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, C) of images (N, 3, H, W)."""
        stages = self.stages(images.contiguous(memory_format=torch.channels_last))
        return (stages * self.collapse).sum(dim=(2, 3))  # (N, C)


def stage_widths(image_px: int, step_channels: int) -> list[int]:
    """Return the channels of the stages from 4 px to half the image's side.

    Raises:
        ValueError: `image_px` is not a power of two from 16 on, or `step_channels` not a multiple
            of GROUP_WIDTH.
    """
    if step_channels % GROUP_WIDTH:
        raise ValueError(f"step_channels {step_channels}: a multiple of {GROUP_WIDTH} is needed")
    stages = doublings(image_px) - 2
    return [step_channels * min(2**step, 8) for step in reversed(range(stages))]


def _resize_channels(before: int, after: int) -> nn.Conv2d:
    layer = Convolution(before, after, 1, bias=False)
    _variance_preserving(layer)
    return layer


def _variance_preserving(layer: nn.Conv2d, gain: float = 1.0) -> None:
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
