"""Noise for single pixels of a generator's feature maps: where nuclei and fibres lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FIRST_PX = 8


class LocalNoise(nn.Module):
    """Adds noise to feature maps of 8 px to half the image's side, one map each per image.

    The maps are latents like the others, so that a tile is still made by one vector; every channel
    learns how much it takes of them.

    Args:
        image_px: side of the image.
        channels: of the feature maps, from 8 px on; what there is more of is not used.
        spread: standard deviation of the first strengths, of either sign.

    Source: Karras et al. 2019 (arXiv 1812.04948), section 3.2.
    """

    def __init__(self, image_px: int, channels: Sequence[int], spread: float = 0.0) -> None:
        super().__init__()
        self.sides = noise_sides(image_px)
        self.strengths = nn.ParameterDict(
            {
                str(side): spread * torch.randn(count, 1, 1)
                for side, count in zip(self.sides, channels, strict=False)
            }
        )

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        """Return features (N, C, S, S) with the map of their side among noise (N, dims)."""
        side = features.shape[-1]
        start = sum(smaller**2 for smaller in self.sides if smaller < side)
        own = noise[:, start : start + side**2].view(-1, 1, side, side)
        return features + self.strengths[str(side)].to(features) * own.to(features)


def noise_sides(image_px: int) -> list[int]:
    """Return the sides of the maps that get noise, in pixels."""
    return [FIRST_PX * 2**step for step in range(int(math.log2(image_px // FIRST_PX)))]


def local_noise_dims(image_px: int) -> int:
    """Return how many latents the local noise of a generator takes."""
    return sum(side**2 for side in noise_sides(image_px))
