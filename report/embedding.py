"""Points of high dimension on a plane."""

from __future__ import annotations

import warnings

import numpy as np

NEIGHBOURS = 15  # umap's default
SEED = 99
FEWEST = 4  # points; fewer have no neighbourhood to speak of


def umap_plane(features: np.ndarray) -> np.ndarray:
    """Return the UMAP (N, 2) of at least FEWEST points (N, F), the same for the same points.

    Source: McInnes et al. 2018 (arXiv 1802.03426), by umap-learn, from the principal components.
    """
    with warnings.catch_warnings():
        # It announces that tensorflow is not there, and that a seed means one job.
        warnings.simplefilter("ignore")
        import umap  # compiles on import, seldom needed

        neighbours = min(NEIGHBOURS, len(features) - 1)
        mapper = umap.UMAP(n_neighbors=neighbours, random_state=SEED, n_jobs=1, init="pca")
        return mapper.fit_transform(features)
