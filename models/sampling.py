"""Tiles from a trained generator: tile k depends on the seed, k and the profile alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.wgan_vae import Conditioning
from runtime.seeds import torch_generator

# Matrix products round differently for different batch sizes, so every tile is computed at a fixed
# place of a batch of fixed size, whatever was asked for.
BATCH = 16


def sample_noise(
    seed: int, index: int, latent_dim: int, conditioning: Conditioning | None = None
) -> Tensor:
    """Return the noise (latent_dim,) of a tile: standard normal, or as `Conditioning.draw`."""
    draw = torch_generator(seed, "tile", index)
    if conditioning is None:
        return torch.randn(latent_dim, generator=draw)
    return conditioning.draw(1, draw)[0]


@torch.inference_mode()
def sample_images(
    generator: nn.Module,
    seed: int,
    indices: Sequence[int],
    conditioning: Conditioning | None = None,
    mu: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, image (3, H, W) float32 in [-1, 1] on the CPU) for every index, in ascending
    order.

    Args:
        generator: in eval mode; its device is used.
        seed: of the run.
        indices: tile numbers >= 0, no repeats.
        conditioning: of an RNA-GAN; None for a plain GAN.
        mu: the profile's latents (D,), or one row (len(indices), D) per index, for an RNA-GAN.

    Raises:
        ValueError: only one of `conditioning` and `mu` is given, or an index is repeated.
    """
    if (conditioning is None) != (mu is None):
        raise ValueError("an RNA-GAN needs conditioning and mu, a plain GAN neither")
    if generator.training:
        raise RuntimeError("call eval() first: batch statistics would tie tiles to their batch")
    if len(set(indices)) != len(indices):
        raise ValueError("repeated tile number")
    device, dim = next(generator.parameters()).device, generator.latent_dim
    rows = {index: row for row, index in enumerate(indices)}
    if mu is not None and mu.dim() == 1:
        mu = mu.expand(len(indices), -1)
    for batch in sorted({index // BATCH for index in indices}):
        members = range(batch * BATCH, (batch + 1) * BATCH)
        noise = [sample_noise(seed, index, dim, conditioning) for index in members]
        latents = torch.stack(noise)  # (BATCH, D)
        if conditioning is not None:
            profile = torch.stack([mu[rows.get(index, 0)] for index in members])  # (BATCH, D)
            latents = conditioning.latents(profile.float().cpu(), latents)
        images = generator(latents.to(device)).float().cpu()
        yield from (
            (index, image) for index, image in zip(members, images, strict=True) if index in rows
        )
