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

    def __init__(
        self, generator: nn.Module, mu: Tensor | None = None, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.generator, self.encoding_dims = generator, generator.encoding_dims
        self.mu, self.encoder = mu, encoder
        self.profiles: Tensor | None = None

    def forward(self, noise: Tensor) -> Tensor:
        """Return images (N, 3, S, S) of the step's profiles; `noise` (N, D) is left alone."""
        given = self.profiles
        if self.encoder is None:
            mu = self.mu[given]
        else:
            noise = self.encoder.draw_noise(len(given), torch.Generator(given.device))
            mu = self.encoder(given, noise).mu
        return self.generator(published_latents(mu))


def published_latents(mu: Tensor) -> Tensor:
    """Return the published RNA-GAN's input (N, D): mu plus noise, standardised over the batch."""
    noisy = mu + NOISE * (2 * torch.rand_like(mu) - 1)
    return (noisy - noisy.mean(dim=0)) / noisy.std(dim=0)


class PublishedSteps:
    """The published networks, losses and optimisers, and their step.

    Args:
        image_px: side of the tiles.
        source: what feeds the generator. Empty: noise (GAN, whose critic is also clipped). A mu
            (N, D) of all tiles: the latents of the step's rows (RNA-GAN). A betaVAE for each of
            the three losses: they encode the step's profiles, in memory three times and with
            gradients, as published (RNA-GAN).
        device: where they live.
    """

    def __init__(self, image_px: int, source: Tensor | list[nn.Module], device: torch.device):
        given = isinstance(source, Tensor)
        plain = not given and not source
        dim = source.shape[1] if given else LATENT_DIM
        self.generator = DCGANGenerator(dim, image_px, step_channels=STEP_CHANNELS).to(device)
        self.critic = DCGANDiscriminator(image_px, step_channels=STEP_CHANNELS).to(device)
        self.fed: list[nn.Module] = [self.generator] * 3
        if given:
            self.fed = [ProfileLatents(self.generator, source)] * 3
        elif source:
            self.fed = [ProfileLatents(self.generator, encoder=vae) for vae in source]
        self.losses = (
            WassersteinDiscriminatorLoss(clip=(-0.01, 0.01) if plain else None),
            WassersteinGradientPenalty(),
            WassersteinGeneratorLoss(),
        )
        self.optimizers = [
            torch.optim.Adam(network.parameters(), rate, BETAS)
            for network, rate in zip((self.generator, self.critic), LEARNING_RATES, strict=True)
        ]
        self.device = device

    def step(self, images: Tensor, profiles: Tensor | None = None) -> None:
        """Train on images (N, 3, S, S) with their rows of mu (N,) or profiles (N, G)."""
        for fed in self.fed:
            if isinstance(fed, ProfileLatents):
                fed.profiles = profiles
        for fed, loss in zip(self.fed, self.losses[:2], strict=False):
            loss.train_ops(fed, self.critic, self.optimizers[1], images, self.device)
        self.losses[2].train_ops(
            self.fed[2], self.critic, self.optimizers[0], self.device, len(images)
        )


def train_published(
    images: Tensor, mu: Tensor | None, minutes: float, seed: int, device: torch.device
) -> tuple[nn.Module, int]:
    """Return the trained generator and its steps.

    Args:
        images: training tiles (N, 3, S, S) in [-1, 1].
        mu: the profile's latents (N, D) of each tile (RNA-GAN), or None (GAN, which also clips).
        minutes: wall clock.
        seed: of everything.
        device: where it runs.
    """
    torch.manual_seed(seed)
    images = images.to(device)
    source = [] if mu is None else mu.to(device)
    published = PublishedSteps(images.shape[-1], source, device)
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < 60 * minutes:
        for rows in torch.randperm(len(images)).split(BATCH):
            if len(rows) < BATCH or time.monotonic() - began > 60 * minutes:
                break
            published.step(images[rows], rows)
            steps += 1
    return published.generator, steps


@torch.no_grad()
def sample_published(generator: nn.Module, count: int, mu: Tensor | None = None) -> Tensor:
    """Return images (count, 3, S, S) made as published: in train mode, ten at a time.

    Args:
        generator: of `train_published`.
        count: how many.
        mu: for an RNA-GAN, the profile's latents (count, D) of each image.
    """
    parts, device = [], next(generator.parameters()).device
    for rows in torch.arange(count).split(10):
        latents = torch.randn(len(rows), generator.encoding_dims)
        if mu is not None:
            latents = published_latents(mu[rows])
        parts.append(generator(latents.to(device)).cpu())
    return torch.cat(parts)
