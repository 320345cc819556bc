"""Where synthetic profiles come from: a prior of the latents, and the spread around the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.mixture import GaussianMixture

PRIORS = ("posterior", "mixture", "normal")
NOISES = ("gene", "profile", "none")
MIXTURE_COMPONENTS = (1, 2, 3, 4)  # tried per tissue
PROFILES_PER_PARAMETER = 10  # a full covariance needs so many profiles per latent dimension
MIXED_PROFILES = 3  # residuals that one sample's are made of


@dataclass
class TrainingLatents:
    """Latents of N training profiles.

    Attributes:
        mu, sigma: float32 (N, D), mean and standard deviation of q(z | x).
        tissues: tissue of each profile.
    """

    mu: np.ndarray
    sigma: np.ndarray
    tissues: np.ndarray

    def draw(
        self, prior: str, count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return latents float32 (count, D) and the tissue of each, tissues as in training.

        Args:
            prior: "normal": N(0, I), as published, whose samples belong to no tissue (""), or
                "posterior": z of a random training profile, or "mixture": Gaussians fitted to z of
                each tissue.
            count: samples.
            generator: everything random is drawn from it.

        Source: Kingma and Welling 2014 for N(0, I); the aggregate posterior, Makhzani et al. 2016
        (arXiv 1511.05644); a density fitted to it afterwards, Ghosh et al. 2020 (arXiv 1903.12436).
        """
        if prior == "normal":
            latents = generator.standard_normal((count, self.mu.shape[1]), np.float32)
            return latents, np.full(count, "")
        order = generator.permutation(len(self.mu))
        rows = np.resize(order, count)  # every profile equally often: tissues as in training
        noise = generator.standard_normal((count, self.mu.shape[1]), np.float32)
        latents, tissues = self.mu[rows] + self.sigma[rows] * noise, self.tissues[rows]
        if prior == "posterior":
            return latents, tissues
        for tissue in np.unique(tissues):
            fitted = self._mixture(self.tissues == tissue)
            fitted.random_state = int(generator.integers(2**31))
            latents[tissues == tissue] = fitted.sample((tissues == tissue).sum())[0]
        return latents, tissues

    def _mixture(self, members: np.ndarray) -> GaussianMixture:
        """Return the mixture with the lowest BIC (Schwarz 1978) for z of the member profiles."""
        count, dim = int(members.sum()), self.mu.shape[1]
        # The diagonal of the posterior's covariance is known, so no z is drawn for the fit.
        extra = np.square(self.sigma[members]).mean(axis=0)
        kind = "full" if count >= PROFILES_PER_PARAMETER * dim else "diag"
        numbers = [k for k in MIXTURE_COMPONENTS if k == 1 or count >= PROFILES_PER_PARAMETER * k]
        fits = [
            GaussianMixture(k, covariance_type=kind, random_state=0, reg_covar=1e-6).fit(
                self.mu[members].astype(np.float64)
            )
            for k in numbers
        ]
        best = min(fits, key=lambda fit: fit.bic(self.mu[members]))
        best.covariances_ = best.covariances_ + (np.diag(extra) if kind == "full" else extra)
        return best


@dataclass
class ResidualNoise:
    """What the decoded mean leaves out: residuals float32 (N, G) of N training profiles, scaled.

    Decoded latents are the mean of a profile; a profile scatters around it. A residual is a
    training profile less the decoded z of its own posterior, so that the variances of both add up.
    """

    residuals: np.ndarray
    tissues: np.ndarray

    def draw(self, kind: str, tissues: Sequence[str], generator: np.random.Generator) -> np.ndarray:
        """Return scaled noise float32 (M, G) for samples of the given tissues ("": any).

        Args:
            kind: "none": zeros, as published; "gene": each gene's residual is that of a training
                profile of the tissue of its own, so genes scatter independently; "profile": the
                weighted sum of `MIXED_PROFILES` whole residuals, weights positive with squares that
                sum to 1, so variances and gene-gene correlations are kept; such samples lie close
                to those profiles.
            tissues: of the M samples.
            generator: everything random is drawn from it.

        Source: residual bootstrap, Efron 1979; weights with unit sum of squares keep the
        covariance, as in the smoothed bootstrap of Silverman and Young 1987.
        """
        noise = np.zeros((len(tissues), self.residuals.shape[1]), np.float32)
        if kind == "none":
            return noise
        genes = np.arange(noise.shape[1])
        members = {name: self._rows(name) for name in dict.fromkeys(tissues)}
        means = {name: self.residuals[rows].mean(axis=0) for name, rows in members.items()}
        for number, name in enumerate(tissues):
            rows = members[name]
            if kind == "gene":
                noise[number] = self.residuals[generator.choice(rows, len(genes)), genes]
                continue
            chosen = generator.choice(rows, min(MIXED_PROFILES, len(rows)), replace=False)
            weights = np.abs(generator.standard_normal(len(chosen))).astype(np.float32)
            weights /= np.linalg.norm(weights)
            noise[number] = means[name] + weights @ (self.residuals[chosen] - means[name])
        return noise

    def _rows(self, tissue: str) -> np.ndarray:
        rows = np.flatnonzero(self.tissues == tissue)
        return rows if len(rows) else np.arange(len(self.residuals))
