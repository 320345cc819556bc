"""The DCGAN generator and critic, with the linear layers written as linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.convolution import Downsample, Upsample, wide_product
from models.critic import SLOPE, ConditionalCritic, doublings
from models.local_noise import LocalNoise, local_noise_dims

GROUPS = 8
EVEN_LAYERS = 3  # the last upsamplings, whose rasters would repeat every 2, 4 and 8 pixels
BILINEAR = (0.25, 0.75, 0.75, 0.25)


class Generator(nn.Module):
    """Maps latents (N, D) to images (N, 3, image_px, image_px) in [-1, 1].

    The first layer maps a 1 x 1 "image" to 4 x 4: as matrix product it is the same function as the
    published transposed convolution, and several times faster.

    Args:
        latent_dim: D.
        image_px: side, a power of two from 16 on.
        step_channels: channels of the last feature map; they double with every halving of the side.
        modulation: let the latents scale and shift every feature map, not only make the first.
        local_noise: add noise to every pixel of the feature maps, from latents of its own: the last
            `local_noise_dims(image_px)` of D, which do nothing else.

    Source: Radford et al. 2016 (arXiv 1511.06434) in the form of torchgan 0.1.0's DCGANGenerator,
    which RNA-GAN used: 111,815,555 parameters at 256 px, D = 2048, step_channels = 64. Modulation:
    Chen et al. 2019 (arXiv 1810.01365). Unlike there, the transposed convolutions begin as bilinear
    upsampling.
    """

    def __init__(
        self,
        latent_dim: int = 2048,
        image_px: int = 256,
        step_channels: int = 64,
        modulation: bool = False,
        local_noise: bool = False,
    ) -> None:
        super().__init__()
        halvings = doublings(image_px) - 3
        self.latent_dim, self.image_px = latent_dim, image_px
        self.shared_dim = latent_dim - local_noise * local_noise_dims(image_px)
        self.channels = step_channels * 2**halvings
        self.project = nn.Linear(self.shared_dim, self.channels * 16, bias=False)
        activation = nn.LeakyReLU(SLOPE, inplace=True)
        self.project_norm = nn.Sequential(nn.BatchNorm2d(self.channels), activation)
        blocks = []
        for step in range(halvings):
            wide = self.channels // 2**step
            blocks += [
                Upsample(wide, wide // 2, bias=False),
                nn.BatchNorm2d(wide // 2),
                nn.LeakyReLU(SLOPE, inplace=True),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.to_rgb = Upsample(step_channels, 3)
        self.apply(_start_smooth)
        nn.init.normal_(self.project.weight, std=math.sqrt(2 / (self.channels * 16)))
        widths = [layer.num_features for layer in self.blocks if isinstance(layer, nn.BatchNorm2d)]
        self.styles = nn.ModuleList(
            nn.Linear(self.shared_dim, 2 * width) for width in widths if modulation
        )
        for style in self.styles:
            nn.init.normal_(style.weight, std=0.1 / math.sqrt(self.shared_dim))
            nn.init.zeros_(style.bias)
        # Behind normalisation the noise begins as strong as the features: from nothing it is not
        # learnt, and every tile has its nuclei in the same places.
        self.local_noise = LocalNoise(image_px, widths, spread=1.0) if local_noise else None

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] of latents (N, D)."""
        latents, noise = latents[:, : self.shared_dim], latents[:, self.shared_dim :]
        features = wide_product(latents, self.project.weight)
        features = features.unflatten(1, (self.channels, 4, 4))  # (N, C, 4, 4)
        features = self.project_norm(features.contiguous(memory_format=torch.channels_last))
        for number in range(len(self.blocks) // 3):
            upsample, norm, activation = self.blocks[3 * number : 3 * number + 3]
            features = norm(upsample(features))
            if self.styles:
                scale, shift = self.styles[number](latents)[:, :, None, None].chunk(2, dim=1)
                features = features * (1 + scale) + shift
            if self.local_noise is not None:
                features = self.local_noise(features, noise)
            features = activation(features)  # at last (N, step_channels, H/2, W/2)
        return torch.tanh(self.to_rgb(features))  # (N, 3, H, W)


class Critic(ConditionalCritic):
    """Scores images (N, 3, image_px, image_px); with conditioning it sees the profile's latents
    too.

    Args:
        image_px: side, a power of two from 16 on.
        step_channels: channels of the first feature map; they double with every halving.
        norm: "group" and "none" keep samples apart, as the penalty needs; published: "batch".
        output: "linear", or "leaky_relu" on the score as published.
        latent_dim: D of the latents it may see; 0 for none.
        conditioning: "none", "projection", "regression" or "both".

    Source: torchgan 0.1.0's DCGANDiscriminator (44.7 M parameters at 256 px).
    """

    def __init__(
        self,
        image_px: int = 256,
        step_channels: int = 64,
        norm: str = "group",
        output: str = "linear",
        latent_dim: int = 0,
        conditioning: str = "none",
    ) -> None:
        super().__init__()
        halvings = doublings(image_px) - 3
        blocks: list[nn.Module] = [Downsample(3, step_channels), nn.LeakyReLU(SLOPE, inplace=True)]
        for step in range(halvings):
            narrow = step_channels * 2**step
            blocks.append(Downsample(narrow, narrow * 2, bias=norm == "none"))
            blocks += [_norm(norm, narrow * 2), nn.LeakyReLU(SLOPE, inplace=True)]
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialise)
        self.samples_apart = norm != "batch"
        channels = step_channels * 2**halvings
        self.build_head(channels, 16, latent_dim, conditioning, output, bias=norm != "batch")

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, C * 16) of images (N, 3, H, W) in [-1, 1]."""
        return self.blocks(images.contiguous(memory_format=torch.channels_last)).flatten(1)


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_even(network: nn.Module) -> None:
    """Take what makes rasters out of a generator's last transposed convolutions, if it has any.

    Profiles reach tiles by rasters sooner than by tissue: the critic's strided layers read them
    well.
    """
    for layer in [part for part in network.modules() if isinstance(part, Upsample)][-EVEN_LAYERS:]:
        layer.make_even()


@torch.no_grad()
def _start_smooth(module: nn.Module) -> None:
    """Have a transposed convolution upsample bilinearly between random mixes of the channels.

    From random kernels it makes a raster, since neighbouring pixels have different ones, and a
    short training keeps it.
    """
    if isinstance(module, Upsample):
        ramp = torch.tensor(BILINEAR)
        mix = torch.randn(*module.weight.shape[:2], 1, 1) / math.sqrt(module.in_channels)
        # A pixel gets 2 x 2 of the taps: divided by the norm of these, the variance stays.
        module.weight.copy_(mix * torch.outer(ramp, ramp) / (ramp.square().sum() / 2))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
