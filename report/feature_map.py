"""Figure of the feature map: mean feature of each patient's tiles, real, GAN and RNA-GAN."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from report.embedding import FEWEST, SEED, umap_plane
from report.style import COLOURS, MARKERS, Drawn, MissingResult, panels
from runtime.errors import UserError

NAMES = {"real": "real", "rna-gan": "RNA-GAN", "gan": "GAN"}
KEYS = ("patients", "sources", "tissues", "tiles", "features", "network")


def draw_feature_map(results: Path) -> Drawn:
    """Return the UMAP of per-patient mean features of real, GAN and RNA-GAN tiles.

    Source: the publication's feature map; McInnes et al. 2018 (arXiv 1802.03426).
    """
    paths = sorted(results.glob("generated*/**/patient_features.npz"))
    if not paths:
        raise MissingResult(
            "no generated/<run>/patient_features.npz: run generate_tissue_images.py --all_patients"
            " --features inception"
        )
    contents = [_read(path) for path in paths]
    network = tuple(contents[0]["network"])
    contents = [content for content in contents if tuple(content["network"]) == network]
    numbers = pd.DataFrame(
        {
            "patient": np.concatenate([content["patients"] for content in contents]),
            "source": np.concatenate([content["sources"] for content in contents]),
            "tissue": np.concatenate([content["tissues"] for content in contents]),
            "tiles": np.concatenate([content["tiles"] for content in contents]),
        }
    )
    features = np.concatenate([content["features"] for content in contents])
    if len(features) < FEWEST:
        raise MissingResult(f"only {len(features)} patients with features: {FEWEST} are needed")
    numbers[["umap1", "umap2"]] = umap_plane(features)
    numbers["nearest_real_tissue"] = _nearest_real_tissue(features, numbers)
    figure, axes = panels(1, 1, 3.6)
    axis = axes[0, 0]
    tissues = list(dict.fromkeys(numbers.tissue))
    for marker, (source, name) in zip(MARKERS, NAMES.items(), strict=False):
        for number, tissue in enumerate(tissues):
            part = numbers[(numbers.source == source) & (numbers.tissue == tissue)]
            if len(part):
                colour = COLOURS[number % len(COLOURS)]
                hollow = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.0}
                style = hollow if source != "real" else {"color": colour, "linewidth": 0}
                axis.scatter(
                    part.umap1, part.umap2, s=26, marker=marker, **style,
                    label=f"{tissue}, {name} ({len(part)})",
                )  # fmt: skip
    axis.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
    shares = _shares(numbers)
    counts = numbers.groupby("source").tiles.sum()
    made = ", ".join(
        f"{counts[source]} {name}" for source, name in NAMES.items() if source in counts
    )
    least, most = numbers.tiles.min(), numbers.tiles.max()
    spread = str(most) if least == most else f"{least} to {most}"
    caption = (
        f"UMAP (seed {SEED}) of the mean feature of each patient's tiles; feature network"
        f" {network[0]} (SHA-256 {network[1][:8]}); {made} tiles, {spread} a"
        " patient. Colour: tissue; filled: real, open: generated. A plain"
        " GAN knows no patient: its tiles are divided among them in turn. Distances between"
        " clusters of a UMAP mean nothing; the table counts in the features themselves."
    )
    headline = "Patients whose nearest real patient is of their tissue: " + ", ".join(
        f"{row['tiles of']} {row['nearest real patient of the same tissue']:.0%}"
        for row in shares.to_dict("records")
    )
    return Drawn("Feature map of patients", caption, figure, numbers, headline, shares)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as content:
            return {key: content[key] for key in KEYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not features of generate_tissue_images.py ({error})") from error


def _nearest_real_tissue(features: np.ndarray, numbers: pd.DataFrame) -> np.ndarray:
    """Return the tissue of the nearest real patient, a real patient's own point left out."""
    real = np.flatnonzero(numbers.source == "real")
    if len(real) < 2:
        return np.full(len(numbers), "")
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares[real] - 2 * features @ features[real].T
    distances[real, np.arange(len(real))] = np.inf
    return numbers.tissue.to_numpy()[real][distances.argmin(axis=1)]


def _shares(numbers: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for source, name in NAMES.items():
        part = numbers[numbers.source == source]
        if len(part) and (numbers.nearest_real_tissue != "").all():
            share = float((part.tissue == part.nearest_real_tissue).mean())
            row = {"tiles of": name, "patients": len(part)}
            rows.append(row | {"nearest real patient of the same tissue": share})
    columns = ["tiles of", "patients", "nearest real patient of the same tissue"]
    return pd.DataFrame(rows, columns=columns)
