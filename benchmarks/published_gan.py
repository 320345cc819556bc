"""The published GAN and RNA-GAN, trained through torchgan 0.1.0's own train_ops, as a peer."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # torchgan imports optional packages and warns
    warnings.simplefilter("ignore")
    from torchgan.losses import (
        WassersteinDiscriminatorLoss,
        WassersteinGeneratorLoss,
        WassersteinGradientPenalty,
    )
    from torchgan.models import DCGANDiscriminator, DCGANGenerator

BATCH, LATENT_DIM, STEP_CHANNELS = 8, 2048, 64
NOISE = 0.3
LEARNING_RATES = (1e-4, 4e-4)  # generator, critic
BETAS = (0.5, 0.999)


class ProfileLatents(nn.Module):
    """Puts the latents of the step's profiles in the place of the noise that train_ops draws."""

    label_type = "none"

    def __init__(self, generator: nn.Module, mu: Tensor) -> None:
        super().__init__()
        self.generator, self.mu, self.encoding_dims = generator, mu, generator.encoding_dims
        self.rows = torch.arange(BATCH)

    def forward(self, noise: Tensor) -> Tensor:
        """Return images (N, 3, S, S); of `noise` (N, D) the size alone is used."""
        return self.generator(published_latents(self.mu[self.rows[: len(noise)]]))


def published_latents(mu: Tensor) -> Tensor:
    """Return the published RNA-GAN's input (N, D): mu plus noise, standardised over the batch."""
    noisy = mu + NOISE * (2 * torch.rand_like(mu) - 1)
    return (noisy - noisy.mean(dim=0)) / noisy.std(dim=0)


def train_published(
    images: Tensor, mu: Tensor | None, minutes: float, seed: int
) -> tuple[nn.Module, int]:
    """Return the trained generator and its steps.

    Args:
        images: training tiles (N, 3, S, S) in [-1, 1].
        mu: the profile's latents (N, D) of each tile (RNA-GAN), or None (GAN, which also clips).
        minutes: wall clock.
        seed: of everything.
    """
    torch.manual_seed(seed)
    side, dim = images.shape[-1], LATENT_DIM if mu is None else mu.shape[1]
    generator = DCGANGenerator(dim, side, step_channels=STEP_CHANNELS)
    critic = DCGANDiscriminator(side, step_channels=STEP_CHANNELS)
    fed = generator if mu is None else ProfileLatents(generator, mu)
    optimizers = [
        torch.optim.Adam(network.parameters(), rate, BETAS)
        for network, rate in zip((generator, critic), LEARNING_RATES, strict=True)
    ]
    clip = (-0.01, 0.01) if mu is None else None
    losses = (WassersteinDiscriminatorLoss(clip=clip), WassersteinGradientPenalty())
    generator_loss, device = WassersteinGeneratorLoss(), torch.device("cpu")
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < 60 * minutes:
        for rows in torch.randperm(len(images)).split(BATCH):
            if len(rows) < BATCH or time.monotonic() - began > 60 * minutes:
                break
            if mu is not None:
                fed.rows = rows
            for loss in losses:
                loss.train_ops(fed, critic, optimizers[1], images[rows], device)
            generator_loss.train_ops(fed, critic, optimizers[0], device, BATCH)
            steps += 1
    return generator, steps


@torch.no_grad()
def sample_published(generator: nn.Module, count: int, mu: Tensor | None = None) -> Tensor:
    """Return images (count, 3, S, S) made as published: in train mode, ten at a time.

    Args:
        generator: of `train_published`.
        count: how many.
        mu: for an RNA-GAN, the profile's latents (count, D) of each image.
    """
    parts = []
    for rows in torch.arange(count).split(10):
        latents = torch.randn(len(rows), generator.encoding_dims)
        parts.append(generator(latents if mu is None else published_latents(mu[rows])))
    return torch.cat(parts)
