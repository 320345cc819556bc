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


@dataclass
class ExpressionScaler:
    """Transform and per-gene z-score, fitted once on the training donors, kept in the checkpoint.

    Attributes:
        transform_name: "log1p", or "log_nonzero": log of non-zeros, zeros stay 0, as published.
        mean: float32 (G,) of the transformed expression.
        std: float32 (G,); 1 for a gene that does not vary.
    """

    transform_name: str
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, expression: np.ndarray, transform_name: str = "log1p") -> ExpressionScaler:
        """Return the scaler of expression (N, G) >= 0, not logged."""
        logged = _log(expression, transform_name)
        mean = logged.mean(axis=0, dtype=np.float64).astype(np.float32)
        std = logged.std(axis=0, dtype=np.float64).astype(np.float32)
        return cls(transform_name, mean, np.where(std > 1e-6, std, np.float32(1)))

    def transform(self, expression: np.ndarray) -> np.ndarray:
        """Return scaled expression float32 (N, G)."""
        scaled = _log(expression, self.transform_name)
        scaled -= self.mean
        scaled /= self.std
        return scaled

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
        """Return mu (N, D) on the CPU of expression (N, G) >= 0 over `genes`."""
        return self.model.latents(torch.from_numpy(self.scaler.transform(expression)))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Return scaled expression float32 (N, G) of latents (N, D)."""
        device = self.model.mu.weight.device
        parts = [self.model.decode(part.to(device)).cpu() for part in latents.split(BATCH)]
        return torch.cat(parts).numpy()


def _log(expression: np.ndarray, transform_name: str) -> np.ndarray:
    expression = np.asarray(expression, np.float32)
    if transform_name == "log1p":
        return np.log1p(expression)
    if transform_name == "log_nonzero":
        return np.log(expression, out=np.zeros_like(expression), where=expression > 0)
    raise ValueError(f"expression_transform {transform_name!r} is none of {TRANSFORMS}")
