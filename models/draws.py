"""Everything random in one training step, drawn for the whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.augmentation import Changes, draw_changes, draw_turns
from models.wgan_vae import Conditioning, mismatched
from runtime.device import to_device


class StepDraws(NamedTuple):
    """What a step of N tiles draws, and what follows from it.

    Attributes:
        latents: the generator's input (N, D).
        condition, wrong: the tiles' standardised profiles (N, D), and other tiles' beside them;
            None for a plain GAN.
        epsilon: the penalty's place between images (N, 1, 1, 1), or (1, 1, 1, 1) for all.
        turns: orientation (N,) of real tiles.
        real_changes, fake_changes: augmentation of real and of generated tiles.
    """

    latents: Tensor
    condition: Tensor | None
    wrong: Tensor | None
    epsilon: Tensor
    turns: Tensor
    real_changes: Changes
    fake_changes: Changes

    def share(self, which: slice, device: torch.device) -> StepDraws:
        """Return the part of some of the tiles, on `device`."""
        own, condition, wrong, turns = (
            None if part is None else to_device(part[which], device)
            for part in (self.latents, self.condition, self.wrong, self.turns)
        )
        epsilon = self.epsilon if len(self.epsilon) == 1 else self.epsilon[which]
        changes = (
            Changes(*(to_device(part, device) for part in change.rows(which)))
            for change in (self.real_changes, self.fake_changes)
        )
        return StepDraws(own, condition, wrong, to_device(epsilon, device), turns, *changes)


def draw_step(
    draw: torch.Generator,
    count: int,
    image_px: int,
    latent_dim: int,
    conditioning: Conditioning | None = None,
    profile: Tensor | None = None,
    one_epsilon: bool = False,
) -> StepDraws:
    """Return the draws of a step of `count` tiles.

    Args:
        draw: the step's generator on the CPU: processes that share a batch all draw the whole.
        count: N, over all processes.
        image_px: side of the tiles.
        latent_dim: of the noise of a plain GAN.
        conditioning, profile: of an RNA-GAN, with mu (N, D) of the tiles; None for a plain GAN.
        one_epsilon: draw one for the whole batch, as the published code does.
    """
    epsilon = torch.rand(1 if one_epsilon else count, 1, 1, 1, generator=draw)
    condition = wrong = None
    if conditioning is None:
        latents = torch.randn(count, latent_dim, generator=draw)
    else:
        latents = conditioning.latents(profile, conditioning.draw(count, draw))
        condition = conditioning.condition(profile)
        wrong = mismatched(condition)
    turns = draw_turns(count, draw)
    changes = (draw_changes(count, image_px, draw) for _ in range(2))
    return StepDraws(latents, condition, wrong, epsilon, turns, *changes)
