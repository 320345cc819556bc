"""The chain on real slides, tiles and expression, in short, where the shared data are there."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import betaVAE_training
import extract_tiles
import fid
import generate_tissue_images
import histopathology_gan
import prepare_expression
from data.tiles import open_tile_store
from runtime.checkpoint import load_checkpoint

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HER2ST = DATA / "matched" / "her2st"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(),
    reason=f"real slides and expression are not at {DATA.name}/ beside the project",
)


def run(script, command):
    return script.main(shlex.split(command))


def test_both_real_slides_give_tissue_tiles_at_the_wanted_scale(tmp_path):
    assert not run(
        extract_tiles, f"--slide_path {DATA}/slides --patch_path {tmp_path}/tiles --workers 1"
    )
    slides = pd.read_csv(tmp_path / "tiles/slides.csv")
    assert (slides.status == "done").all()
    for slide in slides.slide:
        store = open_tile_store(tmp_path / "tiles" / slide / f"{Path(slide).stem}.zip")
        assert store.index.mpp.between(0.49, 0.51).all()
        pixels = np.stack([store.read(number) for number in range(min(len(store), 8))])
        assert pixels.shape[1:] == (256, 256, 3)
        assert pixels.mean() < 235  # stained, not glass


def test_betavae_learns_two_real_series_over_shared_genes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expression = DATA / "expression"
    names = ("E-MTAB-2836_hpa32tissues", "E-GEOD-30352_brawand")
    genes = ""
    for number, name in enumerate(names):
        run(
            prepare_expression,
            f"--input {expression}/{name}_tpm.csv.gz --unit tpm --output {number}.csv {genes}",
        )
        genes = "--genes 0.csv"
    count = len(pd.read_csv("0.csv", nrows=0).filter(like="rna_").columns)
    config = {"path_csv": ["0.csv", "1.csv"], "rna_features": count, "hidden_dims": [32, 16]}
    config |= {"latent_dim": 8, "num_epochs": 3, "batch_size": 16, "lr": 1e-3, "save_dir": "vae"}
    Path("vae.json").write_text(json.dumps(config))
    run(betaVAE_training, "--config vae.json")
    history = pd.read_csv("vae/history.csv")
    assert history.train_reconstruction.iloc[-1] < history.train_reconstruction.iloc[0]


def test_rna_gan_on_matched_spots_generates_for_a_held_out_region(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = f"{HER2ST}/region_counts.csv.gz"
    common = {"path_csv": [table], "rna_features": 16796, "n_workers": 0}
    vae = {"hidden_dims": [32, 16], "latent_dim": 8, "num_epochs": 2, "batch_size": 16}
    Path("vae.json").write_text(json.dumps(common | vae | {"save_dir": "vae", "lr": 1e-3}))
    gan = {"patch_data_path": [f"{HER2ST}/tiles"], "img_size": 64, "step_channels": 8}
    gan |= {"tiles_per_step": 16, "noise_dim": 8, "vae_checkpoint": "vae/model_dict_best.pt"}
    Path("gan.json").write_text(json.dumps(common | gan))
    run(betaVAE_training, "--config vae.json")
    run(
        histopathology_gan,
        "--config gan.json --image_dir images --model_dir rna --num_epochs 1 --num_patches 2"
        " --loss_type wganvae",
    )
    trained = set(load_checkpoint("rna.model", "gan")["train_slides"])
    names = pd.read_csv(table, usecols=["wsi_file_name"]).wsi_file_name
    held_out = next(name for name in names if name not in trained)
    run(
        generate_tissue_images,
        f"--checkpoint rna.model --config gan.json --vae --patient1 {held_out}"
        " --sample_size 8 --save_path out",
    )
    assert len(list(Path("out/rna-gan").glob("*.png"))) == 8
    run(
        fid,
        "--checkpoint rna.model --config gan.json --vae --sample_size 8 --draws 2 --no_floor"
        " --allow_mixed_encoding --output fid.json",
    )
    value = json.loads(Path("fid.json").read_text())["fid"]["mean"]
    assert math.isfinite(value)
    assert value > 0
