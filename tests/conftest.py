"""A tiny cohort for every script test: tables, tile stores and configs in a fresh folder."""

import json

import numpy as np
import pandas as pd
import pytest

from data.expression import ExpressionTable, write_expression_table
from data.tiles import Tile, store_path, write_tile_store

GENES, DONORS, TILES, TILE_PX = 30, 10, 6, 32


def write_config(path, **keys):
    """Write a JSON config and return its path as text."""
    path.write_text(json.dumps(keys))
    return str(path)


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Return a folder, made the current one, with two tissues of ten donors and configs."""
    monkeypatch.chdir(tmp_path)
    make_cohort(tmp_path)
    return tmp_path


def make_cohort(tmp_path):
    """Write two tissues of ten donors and configs into a folder."""
    draw = np.random.default_rng(1)
    genes = [f"ENSG{number:011d}.1" for number in range(GENES)]
    for tissue, block in (("lung", "0625"), ("brain", "3025")):
        names = [f"SIM-{donor:04d}-{block}.svs" for donor in range(DONORS)]
        expression = draw.gamma(2, 20, (DONORS, GENES)).astype(np.float32)
        annotations = pd.DataFrame({"tissue": [tissue] * DONORS})
        table = ExpressionTable(names, genes, expression, annotations)
        write_expression_table(tmp_path / f"{tissue}.csv", table)
        for name in names:
            tiles = [
                Tile(32 * x, 0, 1.0, draw.integers(0, 255, (TILE_PX, TILE_PX, 3), dtype=np.uint8))
                for x in range(TILES)
            ]
            path = store_path(tmp_path / "tiles" / tissue, name)
            write_tile_store(path, name, tiles, TILE_PX, 1.0, {})
    shared = {"rna_features": GENES, "split_path": "split.csv", "precision": "float32"}
    write_config(
        tmp_path / "betavae.json", path_csv=["lung.csv", "brain.csv"], hidden_dims=[16, 12],
        latent_dim=6, num_epochs=4, batch_size=4, lr=0.001, warmup_epochs=1, save_dir="vae",
        checkpoint_every=2, **shared,
    )  # fmt: skip
    for tissue in ("lung", "brain"):
        write_config(
            tmp_path / f"gan_{tissue}.json", path_csv=[f"{tissue}.csv"],
            patch_data_path=[f"tiles/{tissue}"], img_size=32, n_workers=0, step_channels=4,
            latent_dim=6, noise_dim=3, tiles_per_step=4, grid_columns=2,
            vae_checkpoint="vae/model_dict_best.pt", **shared,
        )  # fmt: skip
