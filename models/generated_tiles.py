"""Tiles of a generator as a numbered source: tile k is the same whenever it is asked for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from runtime.seeds import numpy_generator


class GeneratedTiles:
    """Tiles of a checkpoint's generator; tile k depends on the seed, k and its profile alone.

    The networks are built when the first tile is asked for.

    Args:
        checkpoint: of a GAN or RNA-GAN.
        sha256: of that checkpoint's file.
        seed: of the noise and of the drawn profiles.
        device: where the generator runs.
        to_pixels: turns images (N, 3, H, W) in [-1, 1] into uint8 (N, H, W, 3).
        expression: float32 (P, G), of an RNA-GAN.
        labels: the class of each profile, e.g. its tissue.
        betavae: returns the checkpoint of the RNA-GAN's betaVAE.
        tiles_per_profile: tile k is of profile k // tiles_per_profile; None: of a drawn one.
    """

    def __init__(
        self,
        checkpoint: dict[str, Any],
        sha256: str,
        seed: int,
        device: torch.device,
        to_pixels: Callable[[Tensor], Tensor],
        expression: np.ndarray | None = None,
        labels: Sequence[str] = (),
        betavae: Callable[[], dict[str, Any]] | None = None,
        tiles_per_profile: int | None = None,
    ) -> None:
        self.checkpoint, self.seed, self.device = checkpoint, seed, device
        self.expression, self.labels, self.sha256 = expression, labels, sha256
        self._to_pixels, self._betavae = to_pixels, betavae
        self._tiles_per_profile = tiles_per_profile
        self._identity = {"checkpoint_sha256": sha256, "seed": seed}
        if expression is not None:
            self._identity |= {
                "betavae_sha256": checkpoint["conditioning"]["betavae_sha256"],
                "profiles_sha256": hashlib.sha256(expression.tobytes()).hexdigest(),
            }
        if tiles_per_profile is not None:
            self._identity["tiles_per_profile"] = tiles_per_profile

    def identity(self) -> dict[str, Any]:
        """Return plain values that change whenever a tile would."""
        return self._identity

    def label_of(self, index: int) -> str:
        """Return the class of the profile that tile `index` is made from; "" without profiles."""
        return self.labels[self._profile_of(index)] if self.labels else ""

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pixels uint8 (H, W, 3) of tiles of ascending numbers."""
        generator, conditioning, mu = self._networks
        if conditioning is not None:
            mu = mu[[self._profile_of(index) for index in indices]]
        for _, image in sample_images(generator, self.seed, indices, conditioning, mu):
            yield self._to_pixels(image[None])[0].numpy()

    @functools.cached_property
    def _networks(self) -> tuple[nn.Module, Conditioning | None, Tensor | None]:
        generator = load_generator(self.checkpoint, self.device)
        if self.expression is None:
            return generator, None, None
        mu = ProfileEncoder.from_checkpoint(self._betavae(), self.device).mu(self.expression)
        return generator, Conditioning.from_checkpoint(self.checkpoint["conditioning"]), mu

    def _profile_of(self, index: int) -> int:
        if self._tiles_per_profile is not None:
            return index // self._tiles_per_profile
        return int(numpy_generator(self.seed, "profile", index).integers(len(self.expression)))


def profile_images(
    checkpoint: dict[str, Any], betavae: dict[str, Any], seed: int, device: torch.device
) -> Callable[[np.ndarray, int, int], Tensor]:
    """Return a function from a profile (G,), first number and count to images (count, 3, H, W).

    Args:
        checkpoint, betavae: of an RNA-GAN and its betaVAE; G is over the betaVAE's genes.
        seed: of the noise; an image of the same number has the same noise.
        device: where the networks run.
    """
    generator = load_generator(checkpoint, device)
    encoder = ProfileEncoder.from_checkpoint(betavae, device)
    conditioning = Conditioning.from_checkpoint(checkpoint["conditioning"])

    def sample(expression: np.ndarray, first: int, count: int) -> Tensor:
        mu = encoder.mu(expression[None])[0]
        numbers = range(first, first + count)
        images = sample_images(generator, seed, numbers, conditioning, mu)
        return torch.stack([image for _, image in images])

    return sample
