"""What the RNA-GAN adds: a profile's latents as generator input, a critic that sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.critic import ConditionalCritic, CriticOutput
from models.wgan import (
    RELATIVISTIC,
    critic_loss,
    generator_loss,
    gradient_penalty,
    zero_centred_penalty,
)


@dataclass
class Conditioning:
    """How the betaVAE's mu of a profile becomes the generator's input.

    Attributes:
        mean, variance: float32 (D,), of mu over the training population.
        noise: half-width a of the uniform noise added to mu; its variance is a^2 / 3.
        noise_dim: standard normal dimensions beside the profile's, for what the profile does not
            fix; 0 as published, where a betaVAE of 2048 dimensions leaves most of them to the
            noise.
        latent_norm: "population", or "batch" as published, where a batch of one patient's
            tiles loses the patient's profile exactly.

    Source: RNA-GAN, methods: mu + Uniform(-0.3, 0.3), standardised.
    """

    mean: Tensor
    variance: Tensor
    noise: float = 0.3
    noise_dim: int = 0
    latent_norm: str = "population"

    @classmethod
    def fit(
        cls, mu: Tensor, noise: float = 0.3, noise_dim: int = 0, latent_norm: str = "population"
    ) -> Conditioning:
        """Return the conditioning of a training population's mu (N, D)."""
        return cls(mu.mean(dim=0), mu.var(dim=0, unbiased=False), noise, noise_dim, latent_norm)

    @property
    def input_dim(self) -> int:
        """Dimensions of the generator's input: D + noise_dim."""
        return len(self.mean) + self.noise_dim

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return noise (count, D + noise_dim): uniform in [-1, 1], then standard normal."""
        beside = torch.rand(count, len(self.mean), generator=generator) * 2 - 1
        return torch.cat([beside, torch.randn(count, self.noise_dim, generator=generator)], dim=1)

    @property
    def scale(self) -> Tensor:
        """Standard deviation (D,) of mu plus noise over the population."""
        return (self.variance + self.noise**2 / 3 + 1e-12).sqrt()

    def condition(self, mu: Tensor) -> Tensor:
        """Return the standardised profile (N, D), without noise: what the critic sees."""
        return (mu - self.mean.to(mu)) / self.scale.to(mu)

    def latents(self, mu: Tensor, noise: Tensor) -> Tensor:
        """Return the generator's input (N, D + noise_dim) from mu (N, D) and noise of `draw`."""
        beside, extra = noise.split([mu.shape[1], self.noise_dim], dim=1)
        noisy = mu + self.noise * beside
        if self.latent_norm == "batch":
            standardised = (noisy - noisy.mean(dim=0)) / noisy.std(dim=0)
        else:
            standardised = self.condition(noisy)
        return torch.cat([standardised, extra], dim=1)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {
            "mean": self.mean.cpu(),
            "variance": self.variance.cpu(),
            "noise": self.noise,
            "noise_dim": self.noise_dim,
            "latent_norm": self.latent_norm,
        }

    @classmethod
    def from_checkpoint(cls, content: dict[str, Any]) -> Conditioning:
        """Return the conditioning that `to_checkpoint` described."""
        keys = ("mean", "variance", "noise", "noise_dim", "latent_norm")
        return cls(**{key: content[key] for key in keys})


def regression_loss(predicted_latents: Tensor, condition: Tensor) -> Tensor:
    """Return the squared error, a scalar, of latents (N, D) read back from images.

    The critic learns it on real images; the generator lowers it on its own, so that the profile
    must stay recoverable from the tile.

    Source: Odena et al. 2017 (arXiv 1610.09585), with a continuous target instead of a class.
    """
    return F.mse_loss(predicted_latents.float(), condition.float())


def mismatched(condition: Tensor) -> Tensor:
    """Return every row's condition (N, D) exchanged for its neighbour's: real tile, wrong profile.

    Source: Reed et al. 2016 (arXiv 1605.05396), the matching-aware discriminator.
    """
    return torch.roll(condition, 1, dims=0)


def critic_objective(
    critic: ConditionalCritic,
    loss_type: str,
    real: Tensor,
    fake: Tensor,
    condition: Tensor | None,
    regression_weight: float,
    wrong: Tensor | None = None,
) -> Tensor:
    """Return the critic's whole loss but the gradient penalty, a scalar.

    Real tiles shall score above generated ones and, where the critic sees the profile, above real
    tiles beside another patient's profile.

    Args:
        critic: scores images.
        loss_type: one of models.wgan.LOSS_TYPES.
        real, fake: images (N, 3, H, W); `fake` without gradient.
        condition: standardised profiles (N, D) of the real tiles, or None.
        regression_weight: of the latent regression, where the critic has one.
        wrong: other profiles (N, D) than the tiles'; None: `mismatched` ones.
    """
    if critic.samples_apart:
        features, fake_features = critic.features(torch.cat([real, fake])).split(len(real))
    else:
        features, fake_features = critic.features(real), critic.features(fake)
    on_real, on_fake = (critic.judge(side, condition) for side in (features, fake_features))
    below = on_fake.score
    if critic.embed is not None:
        wrong = mismatched(condition) if wrong is None else wrong
        below = torch.cat([below, critic.judge(features, wrong).score])  # (2N,)
    loss = critic_loss(loss_type, on_real.score, below)
    return _with_regression(loss, on_real, condition, regression_weight)


def critic_penalty(
    critic: ConditionalCritic,
    loss_type: str,
    real: Tensor,
    fake: Tensor,
    condition: Tensor | None,
    epsilon: Tensor,
    per_batch: bool = False,
) -> Tensor:
    """Return the penalty on the critic's gradient that belongs to the loss, a scalar.

    Relativistic losses: zero-centred, at real and generated images. The others: at points between
    them, where the norm shall be 1. Arguments as in `critic_objective` and `gradient_penalty`.
    """
    if loss_type in RELATIVISTIC:
        twice = None if condition is None else torch.cat([condition, condition])
        both = torch.cat([real, fake])
        return zero_centred_penalty(lambda *given: critic(*given).score, both, twice)
    return gradient_penalty(
        lambda images: critic(images, condition).score, real, fake, epsilon, per_batch
    )


def generator_objective(
    critic: ConditionalCritic,
    loss_type: str,
    real: Tensor,
    fake: Tensor,
    condition: Tensor | None,
    regression_weight: float,
) -> Tensor:
    """Return the generator's loss, a scalar; arguments as in `critic_objective`."""
    on_fake, real_scores = critic(fake, condition), None
    if loss_type in RELATIVISTIC:
        with torch.no_grad():
            real_scores = critic(real, condition).score
    loss = generator_loss(loss_type, on_fake.score, real_scores)
    return _with_regression(loss, on_fake, condition, regression_weight)


def _with_regression(
    loss: Tensor, output: CriticOutput, condition: Tensor | None, weight: float
) -> Tensor:
    if output.predicted_latents is None:
        return loss
    return loss + weight * regression_loss(output.predicted_latents, condition)
