"""What held-out profiles say of synthetic ones, with real training profiles in the same place."""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics.copying import copying_scores
from metrics.expression_agreement import compare_profiles, tissue_transfer
from runtime.seeds import numpy_generator

DRAWS = 3  # of the samples that are compared with the held-out profiles


def sample_evidence(
    real: np.ndarray,
    real_tissues: np.ndarray,
    samples: np.ndarray,
    tissues: np.ndarray,
    training: np.ndarray,
    training_tissues: np.ndarray,
    seed: int,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return how far samples agree with held-out profiles, and the rows of both first compared.

    Both sides hold equally many of each tissue, drawn `DRAWS` times.

    Args:
        real: scaled held-out profiles (N, G) of real_tissues (N,).
        samples: scaled (M, G) of tissues (M,), "" for samples of no tissue, which are compared with
            held-out profiles of any.
        training: scaled profiles (K, G) that the model knows, of training_tissues (K,).
        seed: of draws and cross-validation.

    Returns:
        what `compare_profiles` says; the same of training profiles in the samples' place as
        `floor`; `tissue_accuracy`, unless samples have no tissue; `copying` as `copying_scores`.
        Empty with fewer than two profiles of a side. Then row numbers of `real` and `samples`.
    """
    have_tissues = bool(np.any(tissues != ""))
    names, known = (
        (real_tissues, training_tissues)
        if have_tissues
        else (np.full(len(real), ""), np.full(len(training), ""))
    )
    pairs, floors = (
        [balanced(names, other, numpy_generator(seed, what, draw)) for draw in range(DRAWS)]
        for what, other in (("evidence", tissues), ("floor", known))
    )
    if min(len(pairs[0][0]), len(floors[0][0])) < 2:
        return {}, *pairs[0]
    evidence = compare_profiles([(real[one], samples[two]) for one, two in pairs], seed)
    evidence["floor"] = compare_profiles([(real[one], training[two]) for one, two in floors], seed)
    if have_tissues:
        evidence["tissue_accuracy"] = tissue_transfer(real, real_tissues, samples, tissues)
    draw = numpy_generator(seed, "copying")
    evidence["copying"] = copying_scores(samples, training, real, draw)
    return evidence, *pairs[0]


def balanced(
    tissues1: np.ndarray, tissues2: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of two sets with equally many of each tissue that both hold, drawn at random."""
    rows: tuple[list[int], list[int]] = ([], [])
    for tissue in np.intersect1d(tissues1, tissues2):
        members = [generator.permutation(np.flatnonzero(t == tissue)) for t in (tissues1, tissues2)]
        for side, chosen in zip(rows, members, strict=True):
            side.extend(chosen[: min(map(len, members))].tolist())
    return np.array(rows[0], np.int64), np.array(rows[1], np.int64)
