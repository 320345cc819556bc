"""Changes of images that leave the tissue the same: orientation, stain, place."""

from __future__ import annotations

import torch
from torch import Tensor

# Half-widths of the changes; contrast and saturation are factors 1 +- x.
BRIGHTNESS, SATURATION, CONTRAST, SHIFT = 0.2, 0.5, 0.3, 0.125


def turned(images: Tensor, draw: torch.Generator) -> Tensor:
    """Return every image (N, 3, S, S) in one of its eight orientations: tissue has no up."""
    side = images.shape[-1]
    places = torch.arange(side * side).view(side, side)
    orientations = [torch.rot90(places, turn) for turn in range(4)]
    orientations += [orientation.flip(1) for orientation in orientations]
    turns = torch.randint(8, (len(images),), generator=draw)
    return _rearranged(images, torch.stack(orientations)[turns])


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """Return images (N, 3, H, W) changed in brightness, saturation, contrast and place.

    Differentiable, and meant for real and generated images alike, so that the generator does not
    learn the changes. Images are moved by up to an eighth of their side, mirrored at the border.

    Args:
        images: float, in about [-1, 1].
        draw: a generator on the CPU.

    Source: differentiable augmentation, Zhao et al. 2020 (arXiv 2006.10738), section 3.
    """
    count, (height, width) = len(images), images.shape[2:]
    by = (torch.rand(4, count, 1, 1, 1, generator=draw) * 2 - 1).to(images)
    images = images + BRIGHTNESS * by[0]
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + SATURATION * by[1])
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * (1 + CONTRAST * by[2])
    reaches = (round(height * SHIFT), round(width * SHIFT))
    rows, columns = (
        _mirrored(side, torch.randint(-reach, reach + 1, (count, 1), generator=draw))
        for side, reach in zip((height, width), reaches, strict=True)
    )
    return _rearranged(images, rows[:, :, None] * width + columns[:, None, :])


def _rearranged(images: Tensor, places: Tensor) -> Tensor:
    """Return images (N, C, H, W) whose pixels are those at `places` (N, H, W), row by row."""
    count, channels = images.shape[:2]
    places = places.flatten(1)[:, None].expand(-1, channels, -1).to(images.device)
    return images.flatten(2).gather(2, places).view(images.shape)


def _mirrored(side: int, shift: Tensor) -> Tensor:
    """Return the places (N, side) that an axis shows after a shift (N, 1), mirrored at its ends."""
    places = (torch.arange(side) + shift).abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)
