"""Changes of images that leave the tissue the same: orientation, stain, place, a part hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Half-widths of the changes; contrast and saturation are factors 1 +- x.
BRIGHTNESS, SATURATION, CONTRAST, SHIFT = 0.2, 0.5, 0.3, 0.125
HOLE = 0.5  # side of the hidden square in sides of the image


class Changes(NamedTuple):
    """What `augmented` does to each of N images: `stain` (3, N) in [-1, 1] for brightness,
    saturation and contrast, `shift` (2, N) in pixels, down and to the right, and `hole` (2, N),
    row and column of the middle of the square that is hidden."""

    stain: Tensor
    shift: Tensor
    hole: Tensor

    def rows(self, which: slice) -> Changes:
        """Return the changes of some of the images."""
        return Changes(*(change[:, which] for change in self))


def draw_turns(count: int, draw: torch.Generator) -> Tensor:
    """Return orientations (count,), integers below 8, from a generator on the CPU."""
    return torch.randint(8, (count,), generator=draw)


def draw_changes(count: int, image_px: int, draw: torch.Generator) -> Changes:
    """Return the changes of `count` square images, from a generator on the CPU."""
    stain = torch.rand(3, count, generator=draw) * 2 - 1
    reach = round(image_px * SHIFT)
    shift = torch.randint(-reach, reach + 1, (2, count), generator=draw)
    return Changes(stain, shift, torch.randint(image_px, (2, count), generator=draw))


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Return every image (N, 3, S, S) in one of its eight orientations: tissue has no up.

    Args:
        images: any range.
        turns: of `draw_turns`, (N,), where the images are.
    """
    side = images.shape[-1]
    places = torch.arange(side * side, device=images.device).view(side, side)
    orientations = [torch.rot90(places, turn) for turn in range(4)]
    orientations += [orientation.flip(1) for orientation in orientations]
    return _rearranged(images, torch.stack(orientations)[turns])


def augmented(images: Tensor, changes: Changes) -> Tensor:
    """Return images (N, 3, S, S) changed in stain and place, a part of each hidden.

    Differentiable, and meant for real and generated images alike, so that the generator does not
    learn the changes. Images are moved by up to an eighth of their side, mirrored at the border; a
    square of half their side, or what of it lies inside, is mid-grey.

    Args:
        images: float, in about [-1, 1].
        changes: of `draw_changes`, of N images, where they are.

    Source: differentiable augmentation, Zhao et al. 2020 (arXiv 2006.10738), section 3.
    """
    side = images.shape[-1]
    brightness, saturation, contrast = changes.stain[:, :, None, None, None].to(images)
    images = images + BRIGHTNESS * brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + SATURATION * saturation)
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    images = level + (images - level) * (1 + CONTRAST * contrast)
    rows, columns = (_mirrored(side, shift[:, None]) for shift in changes.shift)
    images = _rearranged(images, rows[:, :, None] * side + columns[:, None, :])
    down, across = (
        (torch.arange(side, device=images.device) - middle[:, None]).abs() < side * HOLE / 2
        for middle in changes.hole
    )
    hidden = down[:, None, :, None] & across[:, None, None, :]  # (N, 1, S, S)
    return images.masked_fill(hidden, 0)


def _rearranged(images: Tensor, places: Tensor) -> Tensor:
    """Return images (N, C, H, W) whose pixels are those at `places` (N, H, W), row by row."""
    count, channels = images.shape[:2]
    places = places.flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, places).view(images.shape)


def _mirrored(side: int, shift: Tensor) -> Tensor:
    """Return the places (N, side) that an axis shows after a shift (N, 1), mirrored at its ends."""
    places = (torch.arange(side, device=shift.device) + shift).abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)
