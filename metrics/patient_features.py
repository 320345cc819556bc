"""Mean feature of each patient's tiles, the points of the publication's feature map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.networks import NetworkFile, load_network, prepare_images
from runtime.device import autocast
from runtime.files import atomic_path

FORMAT = "rna-gan-patient-features/1"


class PatientMeans(NamedTuple):
    """Mean features float32 (P, F) and number of tiles (P,) of P patients, by name and source."""

    patients: list[str]
    sources: list[str]
    tissues: list[str]
    tiles: np.ndarray
    features: np.ndarray


def tile_features(
    network: NetworkFile, device: torch.device, bfloat16: bool
) -> Callable[[Tensor], np.ndarray]:
    """Return a function from pixels uint8 (N, H, W, 3) to features float32 (N, F)."""
    module = load_network(network).to(device)

    @torch.inference_mode()
    def features(pixels: Tensor) -> np.ndarray:
        with autocast(device, bfloat16):
            found = module(prepare_images(pixels.to(device), network.rule))
        return found.flatten(1).float().cpu().numpy()

    return features


def patient_means(
    batches: Iterable[tuple[str, list[tuple[str, str]], Tensor]],
    features: Callable[[Tensor], np.ndarray],
) -> PatientMeans:
    """Return the mean feature of each patient's tiles in each source.

    One sum per patient and source is held, whatever the number of tiles.

    Args:
        batches: source, (patient, tissue) of each tile, pixels uint8 (N, H, W, 3).
        features: of `tile_features`.
    """
    sums: dict[tuple[str, str, str], list[Any]] = {}
    for source, owners, pixels in batches:
        for (patient, tissue), row in zip(owners, features(pixels).astype(np.float64), strict=True):
            entry = sums.setdefault((patient, source, tissue), [0, np.zeros_like(row)])
            entry[0] += 1
            entry[1] += row
    counts = np.array([count for count, _ in sums.values()])
    means = np.stack([total / count for count, total in sums.values()]).astype(np.float32)
    patients, sources, tissues = (list(column) for column in zip(*sums, strict=True))
    return PatientMeans(patients, sources, tissues, counts, means)


def save_patient_means(path: str | Path, means: PatientMeans, network: dict[str, Any]) -> None:
    """Write mean features as .npz: patients, sources, tissues, tiles, features, network."""
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            format=np.array(FORMAT),
            network=np.array([str(network["network"]), str(network["weights_sha256"])]),
            **{name: np.array(values) for name, values in means._asdict().items()},
        )
