"""What every critic shares: a score, and the ways in which it may see the profile."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

SLOPE = 0.2


def doublings(image_px: int) -> int:
    """Return how often a pixel doubles to the image's side.

    Raises:
        ValueError: `image_px` is not a power of two from 16 on.
    """
    if image_px < 16 or image_px & (image_px - 1):
        raise ValueError(f"image_px {image_px}: a power of two from 16 on is needed")
    return image_px.bit_length() - 1


class CriticOutput(NamedTuple):
    """Scores (N,) and, with latent regression, the predicted latents (N, D); else None."""

    score: Tensor
    predicted_latents: Tensor | None


class ConditionalCritic(nn.Module):
    """Base of the critics: subclasses turn images into features (N, C * P), the P places of one
    channel beside each other, and call `build_head`.

    The score reads every feature. The profile belongs to the tissue and not to a place in the
    tile, so it meets the features summed over the places, (N, C): measured, the
    conditioning is learnt sooner that way, and at 256 px the critic has 49 M weights, not 112 M.

    Source: projection: Miyato and Koyama 2018 (arXiv 1802.05637); regression: Odena et al. 2017
    (arXiv 1610.09585) with a continuous target.

    Attributes:
        samples_apart: an image's features do not depend on what is beside it in the batch.
    """

    samples_apart = True

    def build_head(
        self,
        channels: int,
        places: int,
        latent_dim: int,
        conditioning: str,
        output: str,
        bias: bool,
    ) -> None:
        """Add the layers behind the features.

        Args:
            channels, places: C and P.
            latent_dim: D of the latents the critic may see; 0 for none.
            conditioning: "none", "projection", "regression" or "both".
            output: "linear", or "leaky_relu" on the score as published.
            bias: of the score.
        """
        self.places = places
        self.score = nn.Linear(channels * places, 1, bias=bias)
        self.output = nn.LeakyReLU(SLOPE) if output == "leaky_relu" else nn.Identity()
        self.embed = self.regress = None
        if conditioning in ("projection", "both"):
            self.embed = nn.Linear(latent_dim, channels, bias=False)
        if conditioning in ("regression", "both"):
            self.regress = nn.Linear(channels, latent_dim)
        for layer in (self.score, self.regress):
            if layer is not None:
                nn.init.normal_(layer.weight, std=math.sqrt(1 / layer.in_features))
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=math.sqrt(1 / (latent_dim * channels)))

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, C * P) of images (N, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """Bring up to date what follows the weights: once a step, however its batch is split."""

    def judge(self, features: Tensor, latents: Tensor | None = None) -> CriticOutput:
        """Return score and latent prediction of features (N, C * P) beside latents (N, D)."""
        score = self.score(features).squeeze(1)  # (N,)
        if self.embed is None and self.regress is None:
            return CriticOutput(self.output(score), None)
        pooled = features.unflatten(1, (-1, self.places)).sum(dim=2)  # (N, C)
        pooled = pooled / math.sqrt(self.places)
        if self.embed is not None and latents is not None:
            score = score + (self.embed(latents) * pooled).sum(dim=1)
        predicted = None if self.regress is None else self.regress(pooled)  # (N, D)
        return CriticOutput(self.output(score), predicted)

    def forward(self, images: Tensor, latents: Tensor | None = None) -> CriticOutput:
        """Return score and latent prediction of images (N, 3, H, W) in [-1, 1]."""
        return self.judge(self.features(images), latents)
