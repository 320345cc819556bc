"""The betaVAE of gene expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.joint_batchnorm import JointBatchNorm


class Noise(NamedTuple):
    """What a training step draws: the inputs dropout keeps, bool (N, G), and epsilon (N, D)."""

    keep: Tensor
    epsilon: Tensor

    def rows(self, share: slice) -> Noise:
        """Return the noise of some rows of the batch."""
        return Noise(self.keep[share], self.epsilon[share])


class Reconstruction(NamedTuple):
    """What a forward pass gives: scaled expression (N, G), mu (N, D) and logvar (N, D)."""

    scaled_expression: Tensor
    mu: Tensor
    logvar: Tensor


class BetaVAELoss(NamedTuple):
    """Scalars: total = reconstruction + beta * kl."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class BetaVAE(nn.Module):
    """Encoder and decoder of scaled expression profiles.

    Dropout on the input, then Linear-BatchNorm-LeakyReLU blocks, two heads for mu and logvar, and
    the mirror image as decoder.

    Args:
        genes: G.
        hidden_dims: widths of the encoder's blocks; the decoder uses them backwards, less the last.
        latent_dim: D.
        dropout: fraction of input genes set to zero while training.
        output_activation: "linear", or "tanh" as published.

    Batches that are split over processes are normalised jointly (`JointBatchNorm`).

    Source: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), methods: 19198-6000-4000-2048, 303,238,046
    parameters. A tanh output cannot reach z-scores beyond 1, hence the linear default.
    """

    def __init__(
        self,
        genes: int,
        hidden_dims: Sequence[int] = (6000, 4000, 2048),
        latent_dim: int = 2048,
        dropout: float = 0.5,
        output_activation: str = "linear",
    ) -> None:
        super().__init__()
        widths = [genes, *hidden_dims]
        self.genes, self.dropout = genes, dropout
        self.encoder = nn.Sequential(
            *(_block(*pair) for pair in zip(widths, widths[1:], strict=False))
        )
        self.mu = nn.Linear(widths[-1], latent_dim)
        self.logvar = nn.Linear(widths[-1], latent_dim)
        mirrored = [latent_dim, *reversed(hidden_dims[:-1])]
        self.decoder = nn.Sequential(
            *(_block(*pair) for pair in zip(mirrored, mirrored[1:], strict=False)),
            nn.Linear(mirrored[-1], genes),
            nn.Tanh() if output_activation == "tanh" else nn.Identity(),
        )
        self.apply(_initialise)

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.mu.out_features

    def draw_noise(self, rows: int, generator: torch.Generator) -> Noise:
        """Return the noise of a batch of so many rows, on the generator's device."""
        draw = {"generator": generator, "device": generator.device}
        keep = torch.rand(rows, self.genes, **draw) >= self.dropout
        return Noise(keep, torch.randn(rows, self.latent_dim, **draw))

    def encode(
        self, scaled_expression: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, each (N, D), of scaled expression (N, G); `keep` as in `Noise`."""
        if keep is not None:
            scaled_expression = scaled_expression * keep / (1 - self.dropout)
        hidden = self.encoder(scaled_expression)  # (N, hidden_dims[-1])
        return self.mu(hidden), self.logvar(hidden)  # (N, D) each

    def decode(self, z: Tensor) -> Tensor:
        """Return scaled expression (N, G) of latents (N, D)."""
        return self.decoder(z)

    def forward(self, scaled_expression: Tensor, noise: Noise) -> Reconstruction:
        """Return the reconstruction from z = mu + sigma * epsilon of inputs under dropout."""
        mu, logvar = self.encode(scaled_expression, noise.keep)
        z = mu + torch.exp(0.5 * logvar) * noise.epsilon
        return Reconstruction(self.decode(z), mu, logvar)

    @torch.inference_mode()
    def latents(self, scaled_expression: Tensor, batch_size: int = 512) -> Tensor:
        """Return mu (N, D) of scaled expression (N, G) in eval mode, on the input's device."""
        if self.training:
            raise RuntimeError(
                "call eval() first: dropout and batch statistics would change the latents"
            )
        device = self.mu.weight.device
        parts = [self.encode(part.to(device))[0] for part in scaled_expression.split(batch_size)]
        return torch.cat(parts).float().to(scaled_expression.device)

    @torch.inference_mode()
    def posterior(self, scaled_expression: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z | x), (N, D) each, as `latents` does mu."""
        if self.training:
            raise RuntimeError(
                "call eval() first: dropout and batch statistics would change the latents"
            )
        device = self.mu.weight.device
        parts = [self.encode(part.to(device)) for part in scaled_expression.split(batch_size)]
        mu, logvar = (torch.cat(values).float().cpu() for values in zip(*parts, strict=True))
        return mu, torch.exp(0.5 * logvar)


def betavae_loss(
    output: Reconstruction,
    scaled_expression: Tensor,
    beta: float = 0.0005,
    batch_rows: int | None = None,
) -> BetaVAELoss:
    """Return the loss: squared error averaged over all elements plus beta times the KL divergence.

    The KL divergence to N(0, I) is summed over the D dimensions and averaged over the batch.

    Args:
        output: of `BetaVAE.forward`.
        scaled_expression: target (N, G).
        beta: weight of the KL term.
        batch_rows: rows of the batch that the N are a share of; N by default. The losses of all
            shares add up to that of the batch.

    Source: Kingma and Welling 2014, appendix B, for the KL term; weights as in RNA-GAN, methods.
    """
    rows, genes = scaled_expression.shape
    batch_rows = batch_rows or rows
    mu, logvar = output.mu.float(), output.logvar.float()
    errors = F.mse_loss(output.scaled_expression.float(), scaled_expression, reduction="sum")
    reconstruction = errors / (batch_rows * genes)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / batch_rows
    return BetaVAELoss(reconstruction + beta * kl, reconstruction, kl)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), JointBatchNorm(outputs), nn.LeakyReLU())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.constant_(module.bias, 0.01)
