"""How good the tiles of a model in training are: FID and KID against a fixed set of real tiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.frechet import frechet_distance
from metrics.kernel import polynomial_mmd
from metrics.networks import NetworkFile, load_network, prepare_images

BATCH = 32


class Quality(NamedTuple):
    """FID and KID (not multiplied by 1000); lower is better."""

    fid: float
    kid: float


class QualityMeter:
    """Measures sets of tiles against the same real ones; keeps the network and their features.

    Args:
        network: of `metrics.networks.find_network`.
        device: where the network runs.
        real: real tiles, uint8 (N, H, W, 3).

    Attributes:
        real_features: float32 (N, F).
    """

    def __init__(self, network: NetworkFile, device: torch.device, real: Tensor) -> None:
        self.network, self.device = network, device
        self._module = load_network(network).to(device)
        self.real_features = self.features(real)

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> np.ndarray:
        """Return features float32 (N, F) of tiles, uint8 (N, H, W, 3)."""
        parts = [
            self._module(prepare_images(part.to(self.device), self.network.rule)).flatten(1)
            for part in pixels.split(BATCH)
        ]
        return torch.cat(parts).float().cpu().numpy()

    def measure(self, pixels: Tensor) -> Quality:
        """Return the quality of generated tiles, uint8 (N, H, W, 3)."""
        return self.measure_features(self.features(pixels))

    def measure_features(self, features: np.ndarray) -> Quality:
        """Return the quality of generated tiles from their features (N, F)."""
        return Quality(
            frechet_distance(self.real_features, features),
            polynomial_mmd(self.real_features, features),
        )
