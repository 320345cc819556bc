"""From expression profiles to latents and back: scaler, genes and betaVAE as one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.betavae import BetaVAE

TRANSFORMS = ("log1p", "log_nonzero")
BATCH = 512
CONSTANT_BELOW = 1e-6  # a gene whose logarithm varies less does not vary: float32 rounding


@dataclass
class ExpressionScaler:
    """Transform and per-gene z-score, fitted once on the training donors, kept in the checkpoint.

    Attributes:
        transform_name: "log1p", or "log_nonzero": log of non-zeros, zeros stay 0, as published.
        mean: float32 (G,) of the transformed expression.
        std: float32 (G,); 1 for a gene that does not vary, such as one that is 0 in every training
            profile: it is centred, never divided by 0.
    """

    transform_name: str
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(
        cls,
        expression: np.ndarray,
        transform_name: str = "log1p",
        rows: np.ndarray | None = None,
    ) -> ExpressionScaler:
        """Return the scaler of expression (N, G) >= 0, not logged, read a few rows at a time.

        Args:
            expression: an array or anything of which rows can be taken, such as a memory map.
            transform_name: one of TRANSFORMS.
            rows: numbers of the rows to fit on; all by default.

        Source: Chan, Golub and LeVeque 1983 (doi 10.1080/00031305.1983.10483115): means and squared
        deviations of parts, joined; here in float64.
        """
        rows = np.arange(len(expression)) if rows is None else rows
        mean = squares = torch.zeros(expression.shape[1], dtype=torch.float64)
        for first in range(0, len(rows), BATCH):
            part = _tensor(expression[rows[first : first + BATCH]])
            logged = _log(part, transform_name).double()
            variance, part_mean = torch.var_mean(logged, dim=0, correction=0)
            share = len(part) / (first + len(part))
            squares = squares + len(part) * variance
            squares = squares + (part_mean - mean).square() * (first * share)
            mean = mean + (part_mean - mean) * share
        std = (squares / len(rows)).sqrt().float()
        std = torch.where(std > CONSTANT_BELOW, std, torch.ones(()))
        return cls(transform_name, mean.float().numpy(), std.numpy())

    def scale(self, expression: Tensor) -> Tensor:
        """Return scaled expression float32 (N, G) of expression float32 (N, G), on its device."""
        mean, std = (torch.from_numpy(part).to(expression.device) for part in (self.mean, self.std))
        return _log(expression, self.transform_name).sub_(mean).div_(std)

    def transform(self, expression: np.ndarray) -> np.ndarray:
        """Return scaled expression float32 (N, G)."""
        return self.scale(_tensor(expression)).numpy()

    def inverse(self, scaled: np.ndarray) -> np.ndarray:
        """Return expression float32 (N, G) >= 0 from scaled expression."""
        logged = scaled.astype(np.float32) * self.std + self.mean
        if self.transform_name == "log1p":
            return np.maximum(np.expm1(logged), 0)
        return np.where(logged == 0, np.float32(0), np.exp(logged))

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return {
            "transform": self.transform_name,
            "mean": torch.from_numpy(self.mean),
            "std": torch.from_numpy(self.std),
        }

    @classmethod
    def from_checkpoint(cls, content: dict[str, Any]) -> ExpressionScaler:
        """Return the scaler that `to_checkpoint` described."""
        return cls(content["transform"], content["mean"].numpy(), content["std"].numpy())


@dataclass
class ProfileEncoder:
    """A trained betaVAE with the genes and the scaler it was trained with.

    Attributes:
        model: in eval mode.
        scaler: of the training donors.
        genes: G gene ids, in order.
        split: donor to partition ("train", "val", "test").
    """

    model: BetaVAE
    scaler: ExpressionScaler
    genes: list[str]
    split: dict[str, str]

    @classmethod
    def from_checkpoint(cls, content: dict[str, Any], device: torch.device) -> ProfileEncoder:
        """Return the encoder of a betaVAE checkpoint's content, its model on `device`."""
        model = BetaVAE(**content["model_args"])
        model.load_state_dict(content["model"])
        scaler = ExpressionScaler.from_checkpoint(content["scaler"])
        return cls(model.to(device).eval(), scaler, content["genes"], content["split"])

    def mu(self, expression: np.ndarray) -> Tensor:
        """Return mu (N, D) on the CPU of expression (N, G) >= 0 over `genes`.

        `expression` may be anything of which rows can be taken, such as a memory map.
        """
        device = self.model.mu.weight.device
        parts = [
            self.model.latents(
                self.scaler.scale(_tensor(expression[first : first + BATCH]).to(device))
            )
            for first in range(0, len(expression), BATCH)
        ]
        return torch.cat(parts).cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Return scaled expression float32 (N, G) of latents (N, D)."""
        device = self.model.mu.weight.device
        parts = [self.model.decode(part.to(device)).cpu() for part in latents.split(BATCH)]
        return torch.cat(parts).numpy()


def _tensor(expression: np.ndarray) -> Tensor:
    """Return a float32 copy: rows of a memory map may be read-only."""
    return torch.from_numpy(np.array(expression, np.float32))


def _log(expression: Tensor, transform_name: str) -> Tensor:
    if transform_name == "log1p":
        return torch.log1p(expression)
    if transform_name == "log_nonzero":
        return torch.where(expression > 0, expression.log(), torch.zeros_like(expression))
    raise ValueError(f"expression_transform {transform_name!r} is none of {TRANSFORMS}")
