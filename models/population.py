"""How far a profile lies from the population that a model was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2
from torch import Tensor

from models.wgan_vae import Conditioning


class PopulationDistance(NamedTuple):
    """Where N profiles lie.

    Attributes:
        distance: (N,), 1 for the root mean square of the training profiles.
        nearer: (N,), share of the training population that lies nearer to its mean, 0 to 1.
    """

    distance: np.ndarray
    nearer: np.ndarray


def population_distance(conditioning: Conditioning, mu: Tensor) -> PopulationDistance:
    """Return how far the latents mu (N, D) of profiles lie from the training population.

    The latents are standardised as the generator gets them, by the population's deviation with the
    noise's: c_d = (mu_d - mean_d) / scale_d, of variance r_d = variance_d / scale_d^2. A dimension
    that the betaVAE does not use has r_d near 0 and counts for nothing. The distance is
    sqrt(sum c_d^2 / sum r_d), Mahalanobis' with a diagonal covariance; its square times sum r_d is
    compared with a scaled chi-squared distribution of the same mean and variance.

    Source: Mahalanobis 1936; the approximation of a weighted sum of squares: Satterthwaite 1946.
    """
    squares = conditioning.condition(mu).double().square().sum(dim=1).cpu().numpy()  # (N,)
    weights = (conditioning.variance / conditioning.scale.square()).double().cpu().numpy()  # (D,)
    total = max(weights.sum(), 1e-12)
    freedom = max(total**2 / max((weights**2).sum(), 1e-12), 1e-6)
    return PopulationDistance(
        np.sqrt(squares / total), chi2.cdf(squares * freedom / total, freedom)
    )
