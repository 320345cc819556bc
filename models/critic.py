"""What every critic shares: a score, and the ways in which it may see the profile."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

SLOPE = 0.2


class CriticOutput(NamedTuple):
    """Scores (N,) and, with latent regression, the predicted latents (N, D); else None."""

    score: Tensor
    predicted_latents: Tensor | None


class ConditionalCritic(nn.Module):
    """Base of the critics: subclasses turn images into features (N, F) and call `build_head`.

    Source: projection: Miyato and Koyama 2018 (arXiv 1802.05637); regression: Odena et al. 2017
    (arXiv 1610.09585) with a continuous target.
    """

    def build_head(
        self, features: int, latent_dim: int, conditioning: str, output: str, bias: bool
    ) -> None:
        """Add the layers behind the features.

        Args:
            features: F.
            latent_dim: D of the latents the critic may see; 0 for none.
            conditioning: "none", "projection", "regression" or "both".
            output: "linear", or "leaky_relu" on the score as published.
            bias: of the score.
        """
        self.score = nn.Linear(features, 1, bias=bias)
        self.output = nn.LeakyReLU(SLOPE) if output == "leaky_relu" else nn.Identity()
        self.embed = self.regress = None
        if conditioning in ("projection", "both"):
            self.embed = nn.Linear(latent_dim, features, bias=False)
        if conditioning in ("regression", "both"):
            self.regress = nn.Linear(features, latent_dim)
        for layer in (self.score, self.embed, self.regress):
            if layer is not None:
                nn.init.normal_(layer.weight, std=math.sqrt(1 / features))

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, F) of images (N, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def judge(self, features: Tensor, latents: Tensor | None = None) -> CriticOutput:
        """Return score and latent prediction of features (N, F) beside latents (N, D)."""
        score = self.score(features).squeeze(1)  # (N,)
        if self.embed is not None and latents is not None:
            score = score + (self.embed(latents) * features).mean(dim=1)
        predicted = None if self.regress is None else self.regress(features)  # (N, D)
        return CriticOutput(self.output(score), predicted)

    def forward(self, images: Tensor, latents: Tensor | None = None) -> CriticOutput:
        """Return score and latent prediction of images (N, 3, H, W) in [-1, 1]."""
        return self.judge(self.features(images), latents)
