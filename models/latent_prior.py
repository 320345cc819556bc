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

    def posterior(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return z float32 (len(rows), D) of training profiles: mu plus noise of their sigma.

        No noise goes along the axes between the means of tissues. The posterior is a diagonal
        Gaussian, far wider along them than profiles of one tissue are, so that samples would be
        more or less of a tissue than any profile is.
        """
        noise = self.sigma[rows] * generator.standard_normal((len(rows), self.mu.shape[1]))
        axes = self._tissue_axes()
        return (self.mu[rows] + noise - (noise @ axes.T) @ axes).astype(np.float32)

    def draw(
        self, prior: str, count: int, generator: np.random.Generator, tissue: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return latents float32 (count, D) and the tissue of each, tissues as in training.

        Args:
            prior: "normal": N(0, I), as published, whose samples belong to no tissue (""), or
                "posterior": z of a random training profile, or "mixture": that with mu drawn from
                Gaussians fitted to each tissue's.
            count: samples.
            generator: everything random is drawn from it.
            tissue: of the samples; None: any. Not for "normal".

        Source: Kingma and Welling 2014 for N(0, I); the aggregate posterior, Makhzani et al. 2016
        (arXiv 1511.05644); a density fitted to it afterwards, Ghosh et al. 2020 (arXiv 1903.12436).
        """
        if prior == "normal":
            latents = generator.standard_normal((count, self.mu.shape[1]), np.float32)
            return latents, np.full(count, "")
        members = np.arange(len(self.mu))
        if tissue is not None:
            members = np.flatnonzero(self.tissues == tissue)
        # Every profile equally often, so tissues are as in training.
        rows = np.resize(generator.permutation(members), count)
        latents, tissues = self.posterior(rows, generator), self.tissues[rows]
        if prior == "mixture":
            for name in np.unique(tissues):
                own = tissues == name
                fitted = self._mixture(self.tissues == name)
                fitted.random_state = int(generator.integers(2**31))
                latents[own] += fitted.sample(own.sum())[0] - self.mu[rows[own]]
        return latents, tissues

    def _tissue_axes(self) -> np.ndarray:
        """Return an orthonormal basis (T, D) of the differences between the tissues' means."""
        names = np.unique(self.tissues)
        means = np.stack([self.mu[self.tissues == name].mean(axis=0) for name in names])
        _, lengths, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
        return axes[lengths > 1e-6 * max(lengths.max(), 1e-6)]

    def _mixture(self, members: np.ndarray) -> GaussianMixture:
        """Return the mixture with the lowest BIC (Schwarz 1978) for mu of the member profiles."""
        mu = self.mu[members].astype(np.float64)
        kind = "full" if len(mu) >= PROFILES_PER_PARAMETER * mu.shape[1] else "diag"
        fits = [
            GaussianMixture(k, covariance_type=kind, random_state=0, reg_covar=1e-6).fit(mu)
            for k in MIXTURE_COMPONENTS
            if k == 1 or len(mu) >= PROFILES_PER_PARAMETER * k
        ]
        return min(fits, key=lambda fit: fit.bic(mu))


@dataclass
class ResidualNoise:
    """What the decoded mean leaves out: residuals float32 (N, G) of N training profiles, scaled.

    Decoded latents are the mean of a profile; a profile scatters around it.
    """

    residuals: np.ndarray
    tissues: np.ndarray

    @classmethod
    def fit(cls, profiles: np.ndarray, decoded: np.ndarray, tissues: np.ndarray) -> ResidualNoise:
        """Return the residuals of profiles (N, G) around decoded ones of their own posterior.

        A decoder shrinks what it is unsure of, so that residual and decoded profile vary together
        and, drawn apart, add up to too little: residuals of a tissue are widened around their mean
        until the variances of both, over all genes, add up to the profiles'.
        """
        residuals = profiles - decoded
        for name in np.unique(tissues):
            own = tissues == name
            centred = residuals[own] - residuals[own].mean(axis=0)
            missing = profiles[own].var(axis=0).sum() - decoded[own].var(axis=0).sum()
            found = centred.var(axis=0).sum()
            factor = np.sqrt(max(missing, 0) / found) if found > 0 else 1.0
            residuals[own] += np.float32(factor - 1) * centred
        return cls(residuals, tissues)

    def draw(self, tissues: Sequence[str], generator: np.random.Generator) -> np.ndarray:
        """Return scaled noise float32 (M, G) for samples of the given tissues ("": any).

        Every gene of a sample takes its residual from a training profile of its own, of the
        sample's tissue: marginal shapes are kept, genes scatter independently, and no profile is
        copied (whole residuals would make samples recognisable as training profiles). Every
        residual of a gene is used equally often: chosen independently, all samples would share the
        chance deviations of the training profiles from their population, and be told from real
        ones by them.

        Source: balanced bootstrap, Davison, Hinkley and Schechtman 1986 (Biometrika 73:555), of
        residuals, gene by gene.
        """
        tissues = np.asarray(tissues)
        noise = np.empty((len(tissues), self.residuals.shape[1]), np.float32)
        for name in dict.fromkeys(tissues.tolist()):
            pool = self._pool(name)
            samples = np.flatnonzero(tissues == name)
            for start in range(0, len(samples), len(pool)):
                chosen = samples[start : start + len(pool)]
                order = generator.random(pool.shape, np.float32).argsort(axis=0)[: len(chosen)]
                noise[chosen] = np.take_along_axis(pool, order, axis=0)
        return noise

    def _pool(self, tissue: str) -> np.ndarray:
        rows = np.flatnonzero(self.tissues == tissue)
        return self.residuals[rows] if len(rows) else self.residuals


def set_zeros(
    values: np.ndarray,
    tissues: Sequence[str],
    expression: np.ndarray,
    training_tissues: np.ndarray,
) -> None:
    """Make as many samples of each gene 0 as training profiles of their tissue are: the lowest.

    Decoded means and residuals are continuous, and rare genes are often exactly 0.

    Args:
        values: expression of samples (M, G), changed in place.
        tissues: of the samples; "" for any.
        expression: of the training profiles (N, G).
        training_tissues: (N,).
    """
    tissues = np.asarray(tissues)
    for name in dict.fromkeys(tissues.tolist()):
        own, known = tissues == name, training_tissues == name
        share = (expression[known if known.any() else slice(None)] == 0).mean(axis=0)  # (G,)
        count = np.rint(share * own.sum()).astype(int)
        rank = values[own].argsort(axis=0, kind="stable").argsort(axis=0)
        values[own] = np.where(rank < count, 0, values[own])
