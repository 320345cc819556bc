"""How well synthetic expression profiles agree with real ones, gene by gene and as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from metrics.coverage import coverage_metrics
from metrics.expression_recovery import gene_correlations
from metrics.statistics import summary
from metrics.two_sample import classifier_auc, gaussian_mmd, transfer_accuracy

CORRELATED_GENES = 500  # most variable real genes whose correlations are compared
COMPONENTS = 50  # principal components: in thousands of genes all profiles are far apart
# A dimension is active when mu varies more: Burda et al. 2016 (arXiv 1509.00519), section 5.
ACTIVE_VARIANCE = 0.01


def active_dimensions(mu: np.ndarray) -> int:
    """Return how many of the D dimensions of mu (N, D) vary by more than `ACTIVE_VARIANCE`."""
    return int((mu.var(axis=0) > ACTIVE_VARIANCE).sum())


def gene_agreement(real: np.ndarray, generated: np.ndarray) -> dict[str, float | None]:
    """Return agreement of means and standard deviations over genes.

    Args:
        real, generated: scaled expression (N, G) and (M, G), at least 2 of each.

    Returns:
        `mean_r` and `sd_r`, Pearson's r over genes of the means, of the standard deviations;
        `mean_error`, the mean absolute difference of means, in real standard deviations;
        `sd_ratio`, the median of generated over real, with `sd_ratio_quartiles`; below 1 the
        generated profiles are narrower. None where no gene varies.
    """
    means, sds = ([f(x, axis=0) for x in (real, generated)] for f in (np.mean, np.std))
    varies = sds[0] > 1e-6
    if not varies.any():
        return dict.fromkeys(("mean_r", "sd_r", "mean_error", "sd_ratio", "sd_ratio_quartiles"))
    ratios = sds[1][varies] / sds[0][varies]
    return {
        "mean_r": _correlation(*means),
        "sd_r": _correlation(*sds),
        "mean_error": float((np.abs(means[1] - means[0])[varies] / sds[0][varies]).mean()),
        "sd_ratio": float(np.median(ratios)),
        "sd_ratio_quartiles": np.percentile(ratios, [25, 75]).tolist(),
    }


def correlation_agreement(real: np.ndarray, generated: np.ndarray) -> dict[str, float | None]:
    """Return agreement of gene-gene correlations, over pairs of the genes that vary most.

    Args:
        real, generated: as `gene_agreement`.

    Returns:
        `r`, Pearson's over pairs; `mean_error`, the mean absolute difference; `strength_ratio`, the
        root mean square correlation of generated over real; `genes`. None with fewer than 2 genes.
    """
    spread = np.minimum(real.std(axis=0), generated.std(axis=0))
    genes = np.flatnonzero(spread > 1e-6)
    genes = genes[np.argsort(-real[:, genes].std(axis=0), kind="stable")[:CORRELATED_GENES]]
    if len(genes) < 2:
        return {"r": None, "mean_error": None, "strength_ratio": None, "genes": len(genes)}
    upper = np.triu_indices(len(genes), 1)
    one, two = (np.corrcoef(x[:, genes].T)[upper] for x in (real, generated))
    return {
        "r": _correlation(one, two),
        "mean_error": float(np.abs(one - two).mean()),
        "strength_ratio": float(np.sqrt(np.square(two).mean() / np.square(one).mean())),
        "genes": len(genes),
    }


def compare_profiles(
    draws: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0
) -> dict[str, Any]:
    """Return everything that is said of real and generated profiles as plain values for JSON.

    Args:
        draws: pairs of held-out (N, G) and generated (M, G) scaled profiles; classifiers see all
            pairs, everything else is said of the first.
        seed: of cross-validation.

    Returns:
        `profiles` (N, M), `genes`, `correlations`, `mmd`, `coverage`, and `auc` of each classifier
        (`mean`, `sd` and `draws`). Distances ("neighbours", MMD, coverage) are taken in
        `components` principal components of both sets together, "linear" and "forest" see all
        genes. Entries are None where a set is too small.

    Source: see the function of each; coverage as `metrics.coverage`.
    """
    auc: dict[str, list[float | None]] = {"neighbours": [], "linear": [], "forest": []}
    for number, (real, generated) in reversed([*enumerate(draws)]):
        both = np.concatenate([real, generated])
        size = min(COMPONENTS, len(both) - 1, both.shape[1])
        axes = PCA(size, svd_solver="randomized", random_state=0).fit(both)
        parts = [axes.transform(profiles) for profiles in (real, generated)]
        auc["neighbours"].append(classifier_auc(*parts, "neighbours", seed + number))
        for kind in ("linear", "forest"):
            auc[kind].append(classifier_auc(real, generated, kind, seed + number))
    covered = coverage_metrics(*parts)
    return {
        "profiles": [len(real), len(generated)],
        "genes": gene_agreement(real, generated),
        "correlations": correlation_agreement(real, generated),
        "mmd": gaussian_mmd(*parts) if min(map(len, parts)) > 1 else None,
        "auc": {
            kind: None if None in values else summary(values[::-1]) for kind, values in auc.items()
        },
        "coverage": covered and covered._asdict(),
        "components": size,
    }


def tissue_transfer(
    real: np.ndarray, real_tissues: np.ndarray, generated: np.ndarray, tissues: np.ndarray
) -> dict[str, float | None]:
    """Return the balanced tissue accuracy of classifiers from each set to the other.

    Args:
        real, generated: scaled profiles (N, G) and (M, G) with their tissues (N,) and (M,).
    """
    return {
        "real_to_generated": transfer_accuracy(real, real_tissues, generated, tissues),
        "generated_to_real": transfer_accuracy(generated, tissues, real, real_tissues),
    }


def reconstruction_agreement(
    scaled: np.ndarray, reconstructed: np.ndarray, tissues: np.ndarray
) -> dict[str, Any]:
    """Return how held-out profiles are reconstructed, over all and for each tissue.

    Args:
        scaled, reconstructed: (N, G); tissues: (N,).

    Returns:
        for "all" and each tissue `profiles`, `mse`, `gene_r` (median over genes of Pearson's r over
        profiles, quartiles in `gene_r_quartiles`), and `genes` and `correlations` as
        `compare_profiles`; single profiles have an `mse` only.
    """
    groups = {"all": np.ones(len(scaled), bool)}
    groups |= {str(name): tissues == name for name in np.unique(tissues)}
    result = {}
    for name, rows in groups.items():
        one, two = scaled[rows], reconstructed[rows]
        part: dict[str, Any] = {"profiles": len(one), "mse": float(np.square(one - two).mean())}
        if len(one) > 1:
            r = gene_correlations(two, one)
            r = r[np.isfinite(r)]
            part["gene_r"] = float(np.median(r)) if len(r) else None
            part["gene_r_quartiles"] = np.percentile(r, [25, 75]).tolist() if len(r) else None
            part["genes"] = gene_agreement(one, two)
            part["correlations"] = correlation_agreement(one, two)
        result[name] = part
    return result


def reconstruction_evidence(
    scaled: np.ndarray,
    reconstructed: np.ndarray,
    mu: np.ndarray,
    partitions: np.ndarray,
    tissues: np.ndarray,
) -> dict[str, Any]:
    """Return for each part of the split what `reconstruction_agreement` does, with the latents'
    `active_latent_dims`, and how well its tissues are told from reconstructions.

    Args:
        scaled, reconstructed: (N, G). mu: (N, D). partitions: "train", "val" or "test". tissues:
            (N,).

    Returns:
        a part also has `tissue_accuracy`, of a classifier of the real training profiles.
    """
    training = partitions == "train"
    evidence: dict[str, Any] = {}
    for name in dict.fromkeys(partitions.tolist()):
        rows = partitions == name
        accuracy = transfer_accuracy(
            scaled[training], tissues[training], reconstructed[rows], tissues[rows]
        )
        evidence[name] = {
            "groups": reconstruction_agreement(scaled[rows], reconstructed[rows], tissues[rows]),
            "active_latent_dims": active_dimensions(mu[rows]),
            "tissue_accuracy": accuracy,
        }
    return evidence


def profile_components(training: np.ndarray, sets: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the first principal components, fitted on training profiles, of several sets.

    Args:
        training: scaled profiles (K, G), K and G at least 2.
        sets: name to scaled profiles (N, G).

    Returns:
        columns `set`, `pc1` to `pc50` (fewer where K or G is less), a row per profile, sets in
        their order.
    """
    count = min(COMPONENTS, *training.shape)
    axes = PCA(count, svd_solver="randomized", random_state=0).fit(training)
    columns = [f"pc{number}" for number in range(1, count + 1)]
    parts = [
        pd.DataFrame(axes.transform(profiles), columns=columns).assign(set=name)
        for name, profiles in sets.items()
    ]
    return pd.concat(parts, ignore_index=True)[["set", *columns]]


def _correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    if min(len(one), len(two)) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    return float(np.corrcoef(one, two)[0, 1])
