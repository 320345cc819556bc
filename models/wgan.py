"""Adversarial losses and gradient penalties."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.convolution import input_gradient

WASSERSTEIN = ("wgan", "wganvae")
RELATIVISTIC = ("relativistic", "relativisticvae")
LOSS_TYPES = (*WASSERSTEIN, "minimax", "lsgan", *RELATIVISTIC)
CONDITIONAL = ("wganvae", "relativisticvae")  # of the RNA-GAN


def critic_loss(loss_type: str, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Return the critic's loss, a scalar, of scores (N,) and (k N,) of real and other images.

    wgan, wganvae: mean(fake) - mean(real). minimax: binary cross-entropy. lsgan: targets 1 and 0.
    relativistic, relativisticvae: softplus(fake - real) over pairs.

    Source: Arjovsky et al. 2017 (arXiv 1701.07875); Goodfellow et al. 2014 (arXiv 1406.2661), eq.
    1; Mao et al. 2017 (arXiv 1611.04076), eq. 9; Jolicoeur-Martineau 2018 (arXiv 1807.00734) in
    the form of R3GAN (arXiv 2501.05441), eq. 2.
    """
    real_scores, fake_scores = real_scores.float(), fake_scores.float()
    if loss_type in WASSERSTEIN:
        return fake_scores.mean() - real_scores.mean()
    if loss_type == "minimax":
        return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()
    if loss_type == "lsgan":
        return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())
    if loss_type in RELATIVISTIC:
        pairs = real_scores.repeat(len(fake_scores) // len(real_scores))
        return F.softplus(fake_scores - pairs).mean()
    raise ValueError(f"loss_type {loss_type!r} is none of {LOSS_TYPES}")


def generator_loss(
    loss_type: str, fake_scores: Tensor, real_scores: Tensor | None = None
) -> Tensor:
    """Return the generator's loss, a scalar, of scores (N,) of its images; minimax is
    non-saturating, and the relativistic losses need the scores (N,) of real images too.

    Source: as `critic_loss`; Goodfellow et al. 2014, section 3, for the non-saturating form.
    """
    fake_scores = fake_scores.float()
    if loss_type in WASSERSTEIN:
        return -fake_scores.mean()
    if loss_type == "minimax":
        return F.softplus(-fake_scores).mean()
    if loss_type == "lsgan":
        return 0.5 * (fake_scores - 1).square().mean()
    if loss_type in RELATIVISTIC:
        return F.softplus(real_scores.float() - fake_scores).mean()
    raise ValueError(f"loss_type {loss_type!r} is none of {LOSS_TYPES}")


def gradient_penalty(
    score: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    epsilon: Tensor,
    per_batch: bool = False,
) -> Tensor:
    """Return the mean of (gradient norm - 1)^2 at points between real and generated images.

    Args:
        score: the critic's scores (N,) of images (N, 3, H, W).
        real, fake: images (N, 3, H, W); `fake` without gradient.
        epsilon: (N, 1, 1, 1), or (1, 1, 1, 1) for one shared by the batch, uniform in [0, 1].
        per_batch: take one norm over the whole batch, as the published code does.

    Source: Gulrajani et al. 2017 (arXiv 1704.00028), algorithm 1; norms per sample as in its text,
    one norm for the batch as in torchgan 0.1.0.
    """
    between = (fake + epsilon * (real - fake)).requires_grad_(True)  # (N, 3, H, W)
    gradient = input_gradient(score(between).float().sum(), between)
    gradient = gradient.float().flatten(0 if per_batch else 1)  # (N, 3HW), or (N3HW,)
    norm = gradient.square().sum(dim=-1).add(1e-12).sqrt()
    return (norm - 1).square().mean()


def zero_centred_penalty(
    score: Callable[[Tensor, Tensor | None], Tensor],
    images: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """Return the mean squared norm of the score's gradient at the given images.

    Over real and generated images together it is (R1 + R2) / 2.

    Args:
        score: the critic's scores (N,) of images (N, 3, H, W) and condition.
        images: real, generated or both, without gradient.
        condition: of the images, (N, D), or None.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), eq. 9 and 10.
    """
    images = images.detach().requires_grad_(True)
    gradient = input_gradient(score(images, condition).float().sum(), images)
    return gradient.float().flatten(1).square().sum(dim=1).mean()


def clip_weights(critic: nn.Module, bound: float) -> None:
    """Clip every weight of the critic that learns to [-bound, bound].

    Source: Arjovsky et al. 2017, algorithm 1; the published GAN (not RNA-GAN) clips to 0.01.
    """
    with torch.no_grad():
        for weight in critic.parameters():
            if weight.requires_grad:
                weight.clamp_(-bound, bound)
