"""Where synthetic profiles come from: a prior of the latents, and the spread around the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.mixture import GaussianMixture

PRIORS = ("posterior", "mixture", "normal")
NOISES = ("gene", "none")
MIXTURE_COMPONENTS = (1, 2, 3, 4)  # tried per tissue
PROFILES_PER_PARAMETER = 10  # a full covariance needs so many profiles per latent dimension


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

    def draw(self, tissues: Sequence[str], generator: np.random.Generator) -> np.ndarray:
        """Return scaled noise float32 (M, G) for samples of the given tissues ("": any).

        Every gene of a sample takes its residual from a training profile of its own, of the
        sample's tissue: marginal shapes are kept, genes scatter independently, and no profile is
        copied (whole residuals would make samples recognisable as training profiles).

        Source: residual bootstrap, Efron 1979 (doi 10.1214/aos/1176344552), gene by gene.
        """
        noise = np.empty((len(tissues), self.residuals.shape[1]), np.float32)
        genes = np.arange(noise.shape[1])
        members = {name: self._rows(name) for name in dict.fromkeys(tissues)}
        for number, name in enumerate(tissues):
            noise[number] = self.residuals[generator.choice(members[name], len(genes)), genes]
        return noise

    def _rows(self, tissue: str) -> np.ndarray:
        rows = np.flatnonzero(self.tissues == tissue)
        return rows if len(rows) else np.arange(len(self.residuals))
